# The four functions the compiler expects of every environment. The processor's string instructions
# are fast where they matter here (CPL 3, pages and packets).

.section .text.memory_functions, "ax", @progbits
.global memcpy, memmove, memset, memcmp, bcmp
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

memmove:
    mov rax, rdi
    mov rcx, rdx
    mov r8, rdi
    sub r8, rsi
    cmp r8, rdx                  # unsigned: below only if the target starts inside the source
    jb 1f
    rep movsb
    ret
1:
    lea rdi, [rdi + rcx - 1]
    lea rsi, [rsi + rcx - 1]
    std
    rep movsb
    cld
    ret

memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

bcmp:
memcmp:
    xor eax, eax
    test rdx, rdx
    jz 2f
1:
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jnz 2f
    inc rdi
    inc rsi
    dec rdx
    jnz 1b
2:
    ret
