/* Hashes and changes memory in rounds, with integer, x87 and SSE registers in use all the time, until it is told to stop.
 * It is for changes of the engine while it runs: whoever runs it works the results out for the number of rounds.
 *
 * Memory: ROUNDS counts; STOP is set from outside; then HASH, SUM (lane 0 of XMM3) and COUNT (of x87) hold the results, and
 * BACK the number of rounds in which the TSC did not advance.
 *
 * COM1: a byte gets the number of rounds for an answer, in hexadecimal digits and a line feed; `q` gets ROUNDS, HASH, SUM,
 * COUNT and BACK, and is the end.
 */
#include "guest.inc"

#define ROUNDS 0x200000
#define STOP 0x200004
#define HASH 0x200008
#define SUM 0x20000c
#define COUNT 0x200010
#define BACK 0x200014
#define AREA 0x300000
#define WORDS 4096

main:
    mov eax, cr4
    or eax, 0x200
    mov cr4, eax
    fninit
    fldz
    pxor xmm3, xmm3
    mov edi, AREA
    mov ecx, WORDS
    mov eax, 1
1:  imul eax, eax, 1664525
    add eax, 1013904223
    mov [edi], eax
    add edi, 4
    dec ecx
    jnz 1b
    mov ebp, 0x811c9dc5
round:
    mov esi, AREA
    mov ecx, WORDS
1:  xor ebp, [esi]
    imul ebp, ebp, 16777619
    add [esi], ebp
    movd xmm2, ebp
    paddd xmm3, xmm2
    add esi, 4
    dec ecx
    jnz 1b
    fld1
    faddp st(1), st
    rdtsc
    cmp edx, [last + 4]
    ja 2f
    jb 1f
    cmp eax, [last]
    ja 2f
1:  inc dword ptr [BACK]
2:  mov [last], eax
    mov [last + 4], edx
    inc dword ptr [ROUNDS]
    mov edx, COM1 + 5
    in al, dx
    cmp al, 0xff
    je 1f
    test al, 1
    jz 1f
    mov edx, COM1
    in al, dx
    cmp al, 'q'
    je 2f
    mov eax, [ROUNDS]
    call hex
1:  cmp dword ptr [STOP], 0
    je round
2:  mov [HASH], ebp
    movd [SUM], xmm3
    fistp dword ptr [COUNT]
    mov esi, ROUNDS
1:  mov eax, [esi]
    call hex
    add esi, 4
    cmp esi, ROUNDS + 4
    jne 2f
    mov esi, HASH
2:  cmp esi, BACK
    jbe 1b
    xor eax, eax
    out EXIT, al
3:  hlt
    jmp 3b

/* Prints EAX as eight digits and a line feed. */
hex:
    mov ecx, 8
    mov edx, COM1
1:  rol eax, 4
    push eax
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 2f
    add al, 'a' - '9' - 1
2:  out dx, al
    pop eax
    loop 1b
    mov al, 10
    out dx, al
    ret

.data
last: .quad 0
