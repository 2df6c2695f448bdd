# From the boot protocol (64-bit entry, boot_params in RSI), PVH's (32-bit entry, start info in EBX) or a start-up
# IPI to CPL 3.
#
# What must not be done here: loops, memory clearing, anything CPL 3 can do itself. Only plain integer
# instructions: on some hosts all of this is emulated.

# Says where PVH's entry is: other virtual machine monitors boot an ELF image by it.
.section .pvh, "a", @note
    .long 4, 4, 18               # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

# To long mode, from real mode or from protected mode without paging. A far jump must follow.
.macro enter_long_mode cr4
    mov eax, \cr4
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x100               # long mode
    xor edx, edx
    wrmsr
    mov eax, 0x80000033          # paging, numeric errors, extension type, monitor, protection
    mov cr0, eax
.endm

.macro load_data_segments
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
.endm

.section .text.entry, "ax", @progbits
.code32
pvh_start:
    mov esi, ebx                 # start info
    mov esp, 0x8ff0
    lgdt [gdt_pointer]
    enter_long_mode 0x20         # PAE
    .byte 0xea                   # ljmp 0x10:pvh_long
    .long pvh_long
    .word 0x10
.code64
pvh_long:
    load_data_segments

.global _start
_start:
    cli
    mov r12, rsi                 # boot_params or start info
    xor r13d, r13d               # vCPU 0
    lgdt [rip + gdt_pointer]
    mov eax, PML4
    mov cr3, rax
    mov rax, cr0
    and eax, 0xfffffff3          # no emulation, no task switched
    or eax, 0x22                 # monitor coprocessor, numeric errors
    mov cr0, rax
    mov rax, cr4
    or eax, 0x600                # OSFXSR, OSXMMEXCPT: CPL 3 uses SSE2
    mov cr4, rax
    mov al, 0xff                 # both PICs stay silent: everything comes by the IOAPIC
    out 0x21, al
    out 0xa1, al
    mov eax, 0xfee00350          # so does LINT0
    mov dword ptr [rax], 0x10000
    jmp enter_user

ap_entry:
    mov eax, 0xfee00020          # LAPIC id
    mov r13d, [rax]
    shr r13d, 24
    xor r12d, r12d

# r12: the first argument, r13: which vCPU
enter_user:
    lidt [rip + idt_pointer]
    mov eax, r13d
    shl eax, 4
    add eax, TSS_SELECTOR
    ltr ax

    mov eax, 0x40000000          # kvmclock, where KVM says it is there
    cpuid
    cmp ebx, 0x4b4d564b
    jne 1f
    mov eax, 0x40000001
    cpuid
    test eax, 8
    jz 1f
    mov eax, r13d
    shl eax, 6
    lea rax, [rax + kvmclock_pages + 1]
    xor edx, edx
    mov ecx, 0x4b564d01
    wrmsr
1:
    mov rdi, r12
    mov esi, r13d
    mov eax, r13d
    inc eax
    shl eax, 17
    lea rax, [rax + user_stacks - 8] # as if called: 16 n + 8
    push USER_DATA
    push rax
    push USER_FLAGS
    push USER_CODE
    push offset guest_main
    iretq

    .balign 8
gdt_pointer:
    .word 0x6f
    .quad GDT
idt_pointer:
    .word VECTORS * 16 - 1
    .quad IDT

# Copied below 1 MiB; a start-up IPI enters it in real mode with IP 0.
    .balign 16
.global trampoline_begin, trampoline_end
.code16
trampoline_begin:
    jmp 1f
    .balign 8
    .word 0x6f                   # at offset 8: the GDT's limit and base
    .long GDT
    .balign 8
1:
    cli
    mov ax, cs
    mov ds, ax
    lgdt [8]
    enter_long_mode 0x620        # PAE, OSFXSR, OSXMMEXCPT
    .byte 0x66, 0xea             # ljmp 0x10:ap_entry_stack
    .long ap_entry_stack
    .word 0x10
trampoline_end:
.code64
ap_entry_stack:
    load_data_segments
    mov eax, 0xfee00020
    mov esp, [rax]
    shr esp, 24
    inc esp
    shl esp, 12
    add esp, STACKS
    jmp ap_entry

.section .bss
    .balign 4096
.global user_stacks
user_stacks:
    .fill 4 * 0x20000, 1, 0
    .fill 0x4000, 1, 0
fatal_stack_top:
    .balign 64
.global kvmclock_pages
kvmclock_pages:
    .fill 4 * 64, 1, 0
