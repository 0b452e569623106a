/* Loops that a translator may execute in another way once they are hot: addresses that advance across pages, in both
 * directions, with every register in use; faults, division errors and code that is overwritten in the middle of them.
 * expect: loops ok
 */
#include "long.inc"

#define AREA TEST
#define COUNT 3000
#define SUM (COUNT * (COUNT - 1) / 2)

/* Values for registers that a loop does not use, and a look at them afterwards. */
#define MARK mov rbp, 0x1111; mov r12, 0x2222; mov r13, 0x3333; mov r14, 0x4444; mov r15, 0x5555
#define MARKED CHECK(rbp, 0x1111) CHECK(r12, 0x2222) CHECK(r13, 0x3333) CHECK(r14, 0x4444) CHECK(r15, 0x5555)

main64:
    mov rsp, AREA + 0x1ff000
    mov rax, cr4
    or eax, 0x600
    mov cr4, rax
    mov edi, 3
everything:
    push rdi
    call sums
    call backwards
    call conditions
    call stack
    call vectors
    call faults
    call divisions
    call patched
    pop rdi
    dec edi
    jnz everything
    DONE("loops ok\n")

/* Numbers into an array and their sum, by index, by pointer in registers of the upper half, in steps that do not divide
 * a page. */
sums:
    MARK
    mov edi, AREA + 4
    xor eax, eax
1:  mov [rdi + rax * 8], rax
    inc rax
    cmp rax, COUNT
    jne 1b
    xor ebx, ebx
    xor eax, eax
1:  add rbx, [rdi + rax * 8]
    add rax, 1
    cmp rax, COUNT
    jb 1b
    CHECK(rbx, SUM)
    mov r8d, AREA + 4
    xor r9d, r9d
    mov r10d, COUNT
    xor r11d, r11d
1:  mov ecx, [r8]
    add r9, rcx
    lea r8, [r8 + 8]
    xor r11, rcx
    dec r10
    jnz 1b
    CHECK(r9, SUM)
    CHECK(r10, 0)
    CHECK(r8, AREA + 4 + COUNT * 8)
    mov esi, AREA + 4
    xor ebx, ebx
1:  add ebx, [rsi]
    add ebx, [rsi + 8]
    add ebx, [rsi + 16]
    add rsi, 24
    cmp rsi, AREA + 4 + COUNT * 8
    jb 1b
    CHECK(ebx, SUM)
    /* Base and index both in registers of the upper half, and a table beside the code. */
    mov r9d, AREA + 4
    mov r10, COUNT - 1
    xor r11d, r11d
1:  add r11, [r9 + r10 * 8]
    add [rip + total], r10
    sub r10, 1
    jnz 1b
    CHECK(r11, SUM)
    mov rax, [total]
    mov qword ptr [total], 0
    CHECK(rax, SUM)
    /* Loops that end soon, many times. */
    mov ecx, 200
    xor ebx, ebx
2:  mov eax, 3
1:  add rbx, [rdi + rax * 8]
    dec rax
    jnz 1b
    dec ecx
    jnz 2b
    CHECK(rbx, 1200)
    MARKED
    ret

/* A copy from the end to the start, at odd addresses, to and from the same pages. */
backwards:
    MARK
    mov esi, AREA + 4 * COUNT - 3
    mov edi, AREA + 4 * COUNT + 0x8001
    mov r9d, COUNT - 8
1:  mov eax, [rsi]
    mov [rdi], eax
    sub rsi, 4
    sub rdi, 4
    sub r9, 1
    jnz 1b
    lea rsi, [rsi + 4]
    lea rdi, [rdi + 4]
    mov ecx, 4 * (COUNT - 8)
    repe cmpsb
    CHECK(ecx, 0)
    MARKED
    ret

/* Jumps inside the loop, over parts of it and out of it. */
conditions:
    xor ebx, ebx
    xor eax, eax
    mov edi, AREA + 4
1:  test byte ptr [rdi + rax * 8], 1
    jz 2f
    add ebx, [rdi + rax * 8]
    test byte ptr [rdi + rax * 8], 2
    jz 2f
    add ebx, 1
2:  inc rax
    cmp rax, COUNT
    jne 1b
    CHECK(ebx, COUNT / 2 * (COUNT / 2) + COUNT / 4)
    mov r8d, AREA + 4
    mov r11d, 2345
1:  cmp [r8], r11
    je 3f
    add r8, 8
    cmp r8, AREA + 4 + COUNT * 8
    jb 1b
    FAIL(__LINE__)
3:  CHECK(r8, AREA + 4 + 2345 * 8)
    /* Flags of the last instruction, behind the loop. */
    mov ecx, 100
1:  mov eax, [rdi + rcx * 8]
    sub rcx, 1
    jns 1b
    setb al
    CHECK(al, 1)
    CHECK(rcx, -1)
    ret

/* Operands on the stack, inside the loop and behind it. */
stack:
    mov rdx, rsp
    mov rsp, AREA + 0x1f8018
    push 5
    push 0
    push 7
    mov ecx, 300
    xor eax, eax
1:  add [rsp + 8], rcx
    add rax, [rsp + 16]
    dec rcx
    jnz 1b
    add rax, [rsp]
    pop rbx
    pop rsi
    pop rdi
    CHECK(rax, 1507)
    CHECK(rbx, 7)
    CHECK(rsi, 45150)
    CHECK(rdi, 5)
    /* The same across a page. */
    mov rsp, AREA + 0x1f9008
    push 5
    push 0
    mov ecx, 300
1:  add [rsp + 8], rcx
    add [rsp], rcx
    dec rcx
    jnz 1b
    pop rbx
    pop rsi
    CHECK(rbx, 45150)
    CHECK(rsi, 45155)
    mov rsp, rdx
    ret

/* Sixteen bytes at a time. */
vectors:
    mov esi, AREA + 4
    mov edi, AREA + 0x10000
    xor ecx, ecx
    pxor xmm1, xmm1
1:  movdqu xmm0, [rsi + rcx]
    paddq xmm1, xmm0
    movups [rdi + rcx], xmm0
    add rcx, 16
    cmp rcx, COUNT * 8
    jb 1b
    movq rax, xmm1
    psrldq xmm1, 8
    movq rbx, xmm1
    add rax, rbx
    CHECK(rax, SUM)
    mov ecx, COUNT * 8
    repe cmpsb
    CHECK(ecx, 0)
    ret

/* A page that is not there, and one that must not be written, in the middle of the array. */
faults:
    MARK
    mov dword ptr [PTE + 8 * 3], 0
    invlpg [AREA + 0x3000]
    mov edi, AREA
    xor eax, eax
    mov r8, 0x8888
    mov r9, 0x9999
    TRY(absent)
1:  mov rdx, [rdi + rax]
    mov r9, rax
    add rax, 8
    cmp rax, 0x6000
    jne 1b
    FAIL(__LINE__)
absent:
    CAUGHT(14, 0)
    mov rax, cr2
    CHECK(rax, AREA + 0x3000)
    CHECK(r9, 0x2ff8)
    CHECK(r8, 0x8888)
    MARKED
    mov dword ptr [PTE + 8 * 3], AREA + 0x3001
    invlpg [AREA + 0x3000]
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    mov r10d, AREA + 4
    xor r11d, r11d
    TRY(readonly)
1:  mov rcx, [r10 + r11 * 8]
    inc r11
    mov [r10 + r11 * 8 - 8], rcx
    cmp r11, COUNT
    jne 1b
    FAIL(__LINE__)
readonly:
    CAUGHT(14, 3)
    CHECK(rcx, 0x5ff)
    CHECK(r11, 0x600)
    CHECK(r10, AREA + 4)
    MARKED
    mov dword ptr [PTE + 8 * 3], AREA + 0x3003
    invlpg [AREA + 0x3000]
    ret

/* A divisor of zero: all registers are those of that iteration. */
divisions:
    MARK
    mov edi, AREA + 4
    mov ecx, 500
    xor r9d, r9d
    xor r10d, r10d
    mov r11, 0x7777
    TRY(zero)
1:  mov eax, 1000
    xor edx, edx
    lea r10, [rcx + 1]
    div dword ptr [rdi + rcx * 8]
    add r9d, eax
    dec rcx
    jns 1b
    FAIL(__LINE__)
zero:
    CAUGHT(0, 0)
    CHECK(rcx, 0)
    CHECK(r10, 1)
    CHECK(r11, 0x7777)
    CHECK(r9d, 6569)
    MARKED
    ret

/* Each turn changes the loop. */
patched:
    xor ebx, ebx
    mov ecx, 100
1:  mov [rip + added + 2], cl
added:
    add ebx, 0
    dec rcx
    jnz 1b
    CHECK(ebx, 5050)
    ret

.data
total: .quad 0
