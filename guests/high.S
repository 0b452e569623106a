/* Code in the upper half, as kernels have it: the same page at two addresses there and at a third in the lower half, and an
 * address where there is now this page, now that.
 * expect: high ok
 */
#include "long.inc"

#define HIGH 0xffffffff80000000
#define ALIAS 0xffffffffc0000000
#define CODE (TEST + 0x10000)
#define FRAME(n) (TEST + 0x40000 + (n) * 0x1000)
#define UPPER (TEST + 0x20000)
#define WORD 0x1234

main64:
    mov rsp, TEST + 0x1ff000
    mov edi, UPPER
    xor eax, eax
    mov ecx, 4096
    rep stosb
    mov dword ptr [UPPER + 510 * 8], offset pd + 7
    mov dword ptr [UPPER + 511 * 8], offset pd + 7
    mov dword ptr [pml4 + 511 * 8], UPPER + 7
    mov rax, cr3
    mov cr3, rax

    /* lea rax, [rip]; mov ecx, N; ret */
    mov ebx, 2
1:  mov edi, ebx
    shl edi, 12
    add edi, FRAME(0)
    mov dword ptr [rdi], 0x00058d48
    mov dword ptr [rdi + 4], 0xb9000000
    mov [rdi + 8], ebx
    mov byte ptr [rdi + 12], 0xc3
    dec ebx
    jns 1b

    mov r15d, 100
again:
    mov r14d, 20
2:  xor ebx, ebx
    call everywhere
    mov rbx, HIGH
    call everywhere
    mov rbx, ALIAS
    call everywhere
    dec r14d
    jnz 2b

    mov r13d, 2
3:  mov eax, r13d
    shl eax, 12
    add eax, FRAME(0) + 3
    mov [table + (CODE >> 12 & 511) * 8], eax
    mov rbx, HIGH
    invlpg [rbx + CODE]
    lea rsi, [rbx + far_call]
    mov r14d, 20
4:  call rsi
    CHECK(ecx, r13d)
    sub rax, rbx
    CHECK(rax, CODE + 7)
    dec r14d
    jnz 4b
    dec r13d
    jns 3b
    dec r15d
    jnz again
    DONE("high ok\n")

/* Calls `where` as seen from RBX. */
everywhere:
    lea rsi, [rbx + where]
    call rsi
    sub rax, rbx
    CHECK(rax, offset seen + WORD)
    sub rcx, rbx
    CHECK(rcx, offset other)
    CHECK(r8d, WORD + 1)
    sub r9, rbx
    CHECK(r9, offset close)
    ret

where:
    call seen
seen:
    pop rax
    add rax, [rip + number]
    lea rdx, [rip + number]
    mov r8d, [rip + number]
    cmp qword ptr [rdx], r8
    jne 1f
    inc r8d
1:  call close
    call other
    ret

close:
    lea r9, [rip + close]
    ret

far_call:
    push rbx
    lea rbx, [rip + far_call]
    call CODE
    pop rbx
    ret

.align 8
number:
    .quad WORD

.align 4096
other:
    lea rcx, [rip + other]
    ret
