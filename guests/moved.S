/* A page of code in the upper half that is moved, with two processors: one moves it, drops its translation and must find the
 * new code at once; the other goes on with the old, until it is told to drop its own.
 * expect: moved ok
 */
#define BEFORE_PAGING start_second
#include "long.inc"
.code32
#include "second.inc"

#define HIGH 0xffffffff80000000
#define CODE (TEST + 0x10000)
#define FRAME(n) (TEST + 0x40000 + (n) * 0x1000)
#define UPPER (TEST + 0x20000)
#define MOVES 3000

second:
1:  pause
    cmp dword ptr [ready], 1
    jne 1b
    mov eax, 0x20
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x901
    xor edx, edx
    wrmsr
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
    .byte 0xea
    .long second64
    .word CODE64

.code64
second64:
    mov rsp, TEST + 0x1ef000
    lidt [idt64_pointer]
    mov rbx, HIGH
    lea rsi, [rbx + caller]
    xor r13d, r13d
1:  call rsi
    mov eax, [told]
    cmp eax, r13d
    je 1b
    mov r13d, eax
    invlpg [rbx + CODE]
    call often
    mov [heard], r13d
    jmp 1b

main64:
    mov rsp, TEST + 0x1ff000
    mov edi, UPPER
    xor eax, eax
    mov ecx, 4096
    rep stosb
    mov dword ptr [UPPER + 510 * 8], offset pd + 7
    mov dword ptr [pml4 + 511 * 8], UPPER + 7
    mov rax, cr3
    mov cr3, rax

    /* mov ecx, N; ret */
    mov ebx, 1
1:  mov edi, ebx
    shl edi, 12
    add edi, FRAME(0)
    mov byte ptr [rdi], 0xb9
    mov [rdi + 1], ebx
    mov byte ptr [rdi + 5], 0xc3
    dec ebx
    jns 1b
    mov dword ptr [table + (CODE >> 12 & 511) * 8], FRAME(0) + 3
    mov rbx, HIGH
    lea rsi, [rbx + caller]
    mov dword ptr [ready], 1

    mov r13d, 1
2:  mov eax, r13d
    and eax, 1
    shl eax, 12
    add eax, FRAME(0) + 3
    mov [table + (CODE >> 12 & 511) * 8], eax
    invlpg [rbx + CODE]
    call often
    mov [told], r13d
3:  pause
    cmp [heard], r13d
    jne 3b
    inc r13d
    cmp r13d, MOVES
    jbe 2b
    DONE("moved ok\n")

/* Calls the page's code, which must be that of number R13. */
often:
    mov r14d, 20
1:  call rsi
    mov eax, r13d
    and eax, 1
    CHECK(ecx, eax)
    dec r14d
    jnz 1b
    ret

/* Calls it from another page of the upper half. */
.align 4096
caller:
    call CODE
    ret

.bss
.align 64
ready: .skip 64
told: .skip 64
heard: .skip 64
.text
