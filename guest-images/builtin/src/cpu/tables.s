# The CPU's tables: page tables, GDT, IDT, TSS, interrupt stubs and CPL 0 stacks, laid out by the
# assembler at fixed addresses (link.ld) so that no privileged code has to build them: privileged code
# may be emulated at a few million instructions a second.
#
# What must not be done here: anything that is not privileged. Handlers note what happened and leave.

.set MACHINE, 0x200000
.set PML4, MACHINE
.set PDPT, MACHINE + 0x1000
.set PD, MACHINE + 0x2000
.set GDT, MACHINE + 0x6000
.set IDT, MACHINE + 0x6800
.set TSS, MACHINE + 0x7000
.set STUBS, MACHINE + 0x8000
.set STACKS, MACHINE + 0x9000
.set VECTORS, 64
.set CPUS, 4

.set USER_CODE, 0x2b
.set USER_DATA, 0x23
.set TSS_SELECTOR, 0x30
.set USER_FLAGS, 0x3202          # IOPL 3, interrupts on
.set FATAL_FLAGS, 0x3002         # IOPL 3, interrupts off
.set TSS_STRIDE, 0x200
.set TSS_PORTS, 0x800
.set TSS_BYTES, 0x68 + TSS_PORTS / 8 + 1

.section .cpu, "awx", @progbits
.global cpu_begin
cpu_begin:

# --- page tables: the first 4 GiB, identity, 2 MiB pages, open to CPL 3, uncached above 3 GiB -------
    .quad PDPT + 7
    .fill 511, 8, 0
    .quad PD + 0x0007, PD + 0x1007, PD + 0x2007, PD + 0x3007
    .fill 508, 8, 0
.set i, 0
.rept 1536
    .quad (i << 21) + 0xe7       # present, write, user, accessed, dirty, large
    .set i, i + 1
.endr
.rept 512
    .quad (i << 21) + 0xff       # the same, write-through and uncached: devices
    .set i, i + 1
.endr

# --- GDT: the boot protocol's code and data selectors keep their meaning ----------------------------
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff     # 0x10 CPL 0 code
    .quad 0x00cf93000000ffff     # 0x18 CPL 0 data
    .quad 0x00cff3000000ffff     # 0x20 CPL 3 data
    .quad 0x00affb000000ffff     # 0x28 CPL 3 code
.set i, 0
.rept CPUS                       # 0x30, 0x40, ...: one TSS a vCPU
    .quad 0x0000890000000000 + ((TSS + i * TSS_STRIDE) << 16) + TSS_BYTES - 1
    .quad 0
    .set i, i + 1
.endr
    .balign 0x800

# --- IDT: interrupt gates to the stubs ----------------------------------------------------------------
.set i, 0
.rept VECTORS
    .word (STUBS + i * 16) & 0xffff
    .word 0x10
    .word 0x8e00
    .word (STUBS + i * 16) >> 16
    .quad 0
    .set i, i + 1
.endr
    .balign 0x1000

# --- TSS: RSP0, and an I/O bitmap that opens the ports below 0x800 to CPL 3 -----------------------------
# IOPL 3 would do, but some hosts do not keep it; the bitmap would do, but some hosts refuse it when the
# TSS is marked busy, as it is after a restore. So there are both.
.set i, 0
.rept CPUS
    .long 0
    .quad STACKS + (i + 1) * 0x1000
    .fill 90, 1, 0
    .word 0x68
    .fill TSS_PORTS / 8, 1, 0
    .byte 0xff                   # the processor reads one byte more
    .balign TSS_STRIDE
    .set i, i + 1
.endr
    .balign 0x1000

# --- stubs, 16 bytes each ------------------------------------------------------------------------------
.macro exception vector, has_error
    .balign 16
    .if \has_error == 0
    push 0
    .endif
    push \vector
    jmp exception_fatal
.endm
.set i, 0
.rept 8
    exception i, 0
    .set i, i + 1
.endr
    exception 8, 1
    exception 9, 0
    exception 10, 1
    exception 11, 1
    exception 12, 1
    .balign 16                   # 13: general protection
    jmp general_protection
    exception 14, 1
    exception 15, 0
    exception 16, 0
    exception 17, 1
.set i, 18
.rept 3
    exception i, 0
    .set i, i + 1
.endr
    exception 21, 1
.set i, 22
.rept 10
    exception i, 0
    .set i, i + 1
.endr
.set i, 0
.rept 31
    .balign 16
    push rax
    mov eax, 1 << i
    jmp interrupt_common
    .set i, i + 1
.endr
    .balign 16                   # 63: the LAPIC's spurious vector, not acknowledged
    iretq
    .balign 16

# The vCPU's pending word lies at the bottom of its stack page.
interrupt_common:
    push rdx
    mov rdx, rsp
    and rdx, -4096
    or dword ptr [rdx], eax
    mov edx, 0xfee000b0          # LAPIC end of interrupt
    mov dword ptr [rdx], 0
    pop rdx
    pop rax
    iretq

# `hlt` at CPL 3 lands here. With interrupts off, nothing can arrive between the look at the pending
# word and `sti; hlt` (which lets nothing in before the halt): no wake-up is lost.
general_protection:
    push rax
    push rdx
    mov rax, [rsp + 24]
    cmp byte ptr [rax], 0xf4
    jne 2f
    inc qword ptr [rsp + 24]
    mov rdx, rsp
    and rdx, -4096
    cmp dword ptr [rdx], 0
    jne 1f
    sti
    hlt
    cli
1:
    pop rdx
    pop rax
    add rsp, 8
    iretq
2:
    pop rdx
    pop rax
    push 13

# Stack: vector, error code, rip, cs, flags, rsp, ss. Goes on at CPL 3, which prints and shuts down. If
# that fails too, without an IDT the next exception stops the machine for good.
exception_fatal:
    inc dword ptr [rip + fatal_count]
    cmp dword ptr [rip + fatal_count], 1
    jne 1f
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    push USER_DATA
    push offset fatal_stack_top - 8
    push FATAL_FLAGS
    push USER_CODE
    push offset fatal_exception
    iretq
1:
    lidt [rip + no_idt]
    ud2
fatal_count:
    .long 0
no_idt:
    .word 0
    .quad 0
    .balign 0x1000

# --- CPL 0 stacks, a page a vCPU; the first words of each page are shared with CPL 3 -------------------
    .fill CPUS * 4096, 1, 0
.global cpu_end
cpu_end:
