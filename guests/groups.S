/* Memory operands that a translator may check together: at all distances from a page's end, with the next page absent or
 * read-only, through every kind of base, with flags kept alive between them. And what it does for kernels: PUSHF,
 * selectors, strings of bits.
 * expect: groups ok
 */
#include "long.inc"

#define AREA (TEST + 0x10000)
#define PAGE_AT(at) (table + ((at) >> 12 & 511) * 8)
/* The page behind AREA's first, and the frame that is there instead of its own: the two are not adjacent. */
#define NEXT (AREA + 0x1000)
#define FRAME (TEST + 0x40000)
#define FS_BASE 0xc0000100

main64:
    mov rsp, TEST + 0x1ff000
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 3
    mov rax, cr3
    mov cr3, rax
    mov r15d, 40
everything:
    call sweep
    call bases
    call absent
    call read_only
    call carry
    call segments
    call many
    call bits
    call bits32
    call images
    call strings
    dec r15d
    jnz everything
    DONE("groups ok\n")

/* Numbers 1 to 64 from AREA + 0F00h on, over the page's end. */
fill:
    mov edi, AREA + 0xf00
    mov eax, 1
1:  mov [rdi], rax
    add edi, 8
    inc eax
    cmp eax, 65
    jb 1b
    ret

/* Four words are read and one is written by each base from well before to well behind the page's end. */
sweep:
    call fill
    mov esi, AREA + 0xf00
    mov ebp, 1
1:  mov rax, [rsi]
    mov rbx, [rsi + 8]
    mov rcx, [rsi + 24]
    add [rsi + 16], rcx
    mov rdx, [rsi + 16]
    sub [rsi + 16], rcx
    lea r8, [rbp + 1]
    CHECK(rax, rbp)
    CHECK(rbx, r8)
    lea r8, [rbp + 3]
    CHECK(rcx, r8)
    lea r8, [rbp + rbp + 5]
    CHECK(rdx, r8)
    lea r8, [rbp + 2]
    CHECK([rsi + 16], r8)
    add esi, 8
    inc ebp
    cmp ebp, 60
    jb 1b
    ret

/* Bases in registers of the upper half, with an index, and relative to the instruction. */
bases:
    call fill
    mov r14d, AREA + 0xf00
    xor r13d, r13d
1:  lea r8, [r14 + r13 * 8]
    mov r9, [r8 + 8]
    mov r10, [r8]
    mov r11, [r8 + 16]
    add r9, r10
    add r9, r11
    mov rax, [r14 + r13 * 8]
    add rax, [r14 + r13 * 8 + 8]
    add rax, [r14 + r13 * 8 + 16]
    CHECK(rax, r9)
    lea rdx, [r13 + r13 * 2 + 6]
    CHECK(rax, rdx)
    mov qword ptr [r8 + 24], -1
    mov rcx, [r14 + r13 * 8 + 24]
    CHECK(rcx, -1)
    lea rcx, [r13 + 4]
    mov [r8 + 24], rcx
    inc r13d
    cmp r13d, 60
    jb 1b
    mov rax, [rip + numbers]
    add rax, [rip + numbers + 8]
    add [rip + numbers + 16], rax
    mov rbx, [rip + numbers + 16]
    sub [rip + numbers + 16], rax
    CHECK(rbx, 1111)
    /* The base changes between the accesses, and is what one of them reads. */
    mov esi, AREA
    mov qword ptr [rsi], AREA + 0x20
    mov qword ptr [rsi + 0x28], 5
    mov qword ptr [rsi + 8], 6
    mov rdx, [rsi + 8]
    mov rsi, [rsi]
    add rdx, [rsi + 8]
    CHECK(rdx, 11)
    ret

/* The second page is absent: the first access is done, the second faults, and nothing behind it has happened. */
absent:
    mov edi, AREA + 0xff8
    mov qword ptr [rdi], 77
    mov dword ptr [PAGE_AT(NEXT)], 0
    invlpg [NEXT]
    xor ebx, ebx
    mov ecx, 3
    TRY(1f)
    mov rbx, [rdi]
    add rbx, 1
    stc
2:  mov rcx, [rdi + 8]
    mov rbx, [rdi]
    jmp 3f
1:  CAUGHT(14, 0)
    CHECK(dword ptr [ex_eip], offset 2b)
    mov rax, cr2
    CHECK(rax, NEXT)
    CHECK(rbx, 78)
    CHECK(rcx, 3)
    mov eax, [ex_flags]
    and eax, 1
    CHECK(eax, 1)
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 3
    ret
3:  FAIL(__LINE__)

/* It is read-only: what is read before the write is done. */
read_only:
    mov edi, AREA + 0xff0
    mov qword ptr [rdi], 5
    mov qword ptr [rdi + 8], 6
    mov qword ptr [rdi + 16], 7
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 1
    invlpg [NEXT]
    mov rax, cr0
    bts rax, 16
    mov cr0, rax
    mov edx, 4
1:  xor ebx, ebx
    TRY(3f)
    add rbx, [rdi + 16]
    add qword ptr [rdi], 1
    add rbx, [rdi + 8]
2:  add qword ptr [rdi + 16], 1
    mov rbx, [rdi]
    FAIL(__LINE__)
3:  CAUGHT(14, 3)
    CHECK(dword ptr [ex_eip], offset 2b)
    CHECK(rbx, 13)
    dec edx
    jnz 1b
    CHECK(qword ptr [rdi], 9)
    CHECK(qword ptr [rdi + 16], 7)
    mov rax, cr0
    btr rax, 16
    mov cr0, rax
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 3
    invlpg [NEXT]
    ret

/* A number of five words is added to another: the carry goes from one access to the next. */
carry:
    mov ebp, AREA + 0xfc0
1:  mov edi, ebp
    mov rcx, -1
    mov [rdi], rcx
    mov [rdi + 8], rcx
    mov [rdi + 16], rcx
    mov [rdi + 24], rcx
    mov qword ptr [rdi + 32], 41
    mov eax, 1
    mov r9d, 0
    add [rdi], rax
    adc [rdi + 8], r9
    adc [rdi + 16], r9
    mov r10, [rdi + 24]
    adc [rdi + 24], r9
    adc [rdi + 32], r9
    mov rdx, [rdi + 32]
    CHECK(rdx, 42)
    CHECK(r10, -1)
    mov rdx, [rdi]
    or rdx, [rdi + 8]
    or rdx, [rdi + 16]
    or rdx, [rdi + 24]
    CHECK(rdx, 0)
    add ebp, 8
    cmp ebp, NEXT + 8
    jb 1b
    ret

/* Relative to FS, whose base is such that the operands lie on two pages. */
segments:
    call fill
    mov r14d, AREA + 0xf00
    mov r13d, 1
1:  mov ecx, FS_BASE
    lea eax, [r14 - 0x40]
    xor edx, edx
    wrmsr
    mov rax, fs:[0x40]
    mov rbx, fs:[0x48]
    add fs:[0x50], rbx
    mov rcx, fs:[0x50]
    sub fs:[0x50], rbx
    CHECK(rax, r13)
    lea rdx, [r13 + 1]
    CHECK(rbx, rdx)
    lea rdx, [r13 + r13 + 3]
    CHECK(rcx, rdx)
    add r14d, 8
    inc r13d
    cmp r13d, 60
    jb 1b
    ret

/* More of them than there are registers to keep what was found, in one block. */
many:
    push r15
    mov eax, AREA
    lea ebx, [rax + 0x1800]
    lea ecx, [rax + 0x2800]
    lea edx, [rax + 0x3800]
    lea esi, [rax + 0x4800]
    lea edi, [rax + 0x5800]
    lea ebp, [rax + 0x6800]
    lea r12d, [rax + 0x7800]
    lea r13d, [rax + 0x8800]
    lea r14d, [rax + 0x9800]
    lea r15d, [rax + 0xa800]
    lea r8d, [rax + 0xb800]
    lea r9d, [rax + 0xc800]
    .irp r, rax, rbx, rcx, rdx, rsi, rdi, rbp, r12, r13, r14, r15, r8, r9
    mov [\r], \r
    .endr
    .irp r, r9, r8, r15, r14, r13, r12, rbp, rdi, rsi, rdx, rcx, rbx, rax
    mov r10, [\r]
    mov [\r + 8], r10
    .endr
    xor r11d, r11d
    .irp r, rax, rbx, rcx, rdx, rsi, rdi, rbp, r12, r13, r14, r15, r8, r9
    add r11, [\r + 8]
    sub r11, \r
    .endr
    CHECK(r11, 0)
    pop r15
    ret

/* Bits far from the operand, on both sides, and over the page's end. */
bits:
    mov edi, AREA + 0xff8
    mov rcx, -64 * 8
    xor eax, eax
    mov [rdi - 64], rax
    mov [rdi], rax
    mov [rdi + 8], rax
    mov r9, 64 + 5
    bts [rdi], r9
    setc bl
    CHECK(bl, 0)
    CHECK(qword ptr [rdi + 8], 32)
    bt [rdi], r9
    setc bl
    CHECK(bl, 1)
    lock btc [rdi], r9
    setc bl
    CHECK(bl, 1)
    CHECK(qword ptr [rdi + 8], 0)
    lea rax, [rcx + 3]
    lock bts [rdi], rax
    bts [rdi], rax
    setc bl
    CHECK(bl, 1)
    CHECK(qword ptr [rdi - 64], 8)
    lea r10, [rdi - 32]
    lea rax, [rcx + 32 * 8 + 3]
    btr [r10], rax
    setc bl
    CHECK(bl, 1)
    CHECK(qword ptr [rdi - 64], 0)
    /* Other flags than CF stay, and the address has an index. */
    mov eax, 63
    mov edx, 1
    cmp edx, edx
    bts [rdi + rdx * 8 - 8], rax
    setz bl
    CHECK(bl, 1)
    CHECK(dword ptr [rdi + 4], 0x80000000)
    bt [rdi], rax
    setc bl
    CHECK(bl, 1)
    /* The page behind is absent. */
    mov dword ptr [PAGE_AT(NEXT)], 0
    invlpg [NEXT]
    TRY(1f)
    mov eax, 64
    clc
2:  bts [rdi], rax
    FAIL(__LINE__)
1:  CAUGHT(14, 2)
    CHECK(dword ptr [ex_eip], offset 2b)
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 3
    ret

bits32:
    mov edi, AREA + 0xffc
    mov dword ptr [rdi - 16], 0
    mov dword ptr [rdi], 0
    mov dword ptr [rdi + 4], 0
    mov r8, 0x1234567800000000 + 33
    bts [rdi], r8d
    setc bl
    CHECK(bl, 0)
    CHECK(dword ptr [rdi + 4], 2)
    mov eax, -128 + 7
    bts [rdi], eax
    CHECK(dword ptr [rdi - 16], 128)
    btr [rdi], eax
    setc bl
    CHECK(bl, 1)
    btc [rdi], r8d
    setc bl
    CHECK(bl, 1)
    CHECK(dword ptr [rdi + 4], 0)
    ret

/* Images of the flags, selectors in registers and in memory of each size. */
images:
    xor eax, eax
    cmp eax, 1
    pushfq
    pop rbx
    setc cl
    CHECK(cl, 1)
    and ebx, 0xcff
    CHECK(ebx, 0x97)
    mov eax, 0x7fffffff
    mov r8, 0x1122334455667788
    mov r9, r8
    add eax, 1
    pushfq
    seto cl
    pop r9
    CHECK(cl, 1)
    and r9d, 0xcd5
    CHECK(r9d, 0x894)
    std
    pushfq
    cld
    pop rbx
    test ebx, 0x400
    setnz cl
    CHECK(cl, 1)
    mov rbx, -1
    mov bx, ds
    CHECK(rbx, -65536 + KDATA)
    mov rbx, -1
    mov ebx, ss
    CHECK(rbx, KDATA)
    mov r8, -1
    mov r8, cs
    CHECK(r8, CODE64)
    mov r10, -1
    mov r10w, cs
    CHECK(r10, -65536 + CODE64)
    mov edi, AREA + 0xfff
    mov word ptr [rdi], 0
    mov dword ptr [rdi - 4], 0
    stc
    mov [rdi], cs
    setc cl
    CHECK(cl, 1)
    CHECK(word ptr [rdi], CODE64)
    mov [rdi - 4], ds
    CHECK(dword ptr [rdi - 4], KDATA)
    ret

/* REP STOS and REP MOVS: inside a page, over its end, downwards, of nothing, overlapping; what lives in other registers and
 * the flags stay. */
strings:
    mov r8, 0x88
    mov r9, 0x99
    mov r10, 0xaa
    mov r11, 0xbb
    mov r14d, AREA + 0xf00
1:  mov rax, 0x1122334455667788
    mov rdi, r14
    mov ecx, 5
    push rdi
    stc
    rep stosq
    setc bl
    pop rdx
    CHECK(bl, 1)
    CHECK(ecx, 0)
    lea rsi, [r14 + 40]
    CHECK(rdi, rsi)
    CHECK(rdx, r14)
    mov eax, 0x21
    rep stosb
    CHECK(rdi, rsi)
    mov ecx, 3
    rep stosb
    mov ecx, 2
    rep stosd
    mov rcx, [r14 + 40]
    mov rbx, 0x2100000021212121
    CHECK(rcx, rbx)
    /* Each byte from the one before. */
    mov byte ptr [r14], 0x42
    mov rsi, r14
    lea rdi, [r14 + 1]
    mov ecx, 39
    cmp ecx, 40
    rep movsb
    setc bl
    CHECK(bl, 1)
    mov rax, 0x4242424242424242
    CHECK([r14], rax)
    CHECK([r14 + 32], rax)
    lea rdx, [r14 + 39]
    CHECK(rsi, rdx)
    mov dword ptr [r14 + 36], 7
    std
    lea rsi, [r14 + 32]
    lea rdi, [r14 + 16]
    mov ecx, 2
    rep movsq
    cld
    lea rdx, [r14 + 16]
    CHECK(rsi, rdx)
    CHECK(rdi, r14)
    CHECK(dword ptr [r14 + 20], 7)
    mov rsi, r14
    lea rdi, [r14 + 0x2000]
    mov ecx, 3
    rep movsq
    mov rax, [r14 + 0x2010]
    CHECK([r14 + 16], rax)
    inc r14d
    cmp r14d, NEXT + 8
    jb 1b
    CHECK(r8, 0x88)
    CHECK(r9, 0x99)
    CHECK(r10, 0xaa)
    CHECK(r11, 0xbb)
    /* A whole page, and more than one. */
    mov edi, AREA + 0x3000
    mov ecx, 4096
    mov eax, 9
    rep stosb
    CHECK(edi, AREA + 0x4000)
    mov edi, AREA + 0x3000
    mov ecx, 513
    rep stosq
    CHECK(edi, AREA + 0x4008)
    /* What is absent is told where it is. */
    mov dword ptr [PAGE_AT(NEXT)], 0
    invlpg [NEXT]
    TRY(2f)
    mov edi, NEXT - 8
    mov ecx, 16
3:  rep stosb
    FAIL(__LINE__)
2:  CAUGHT(14, 2)
    CHECK(dword ptr [ex_eip], offset 3b)
    CHECK(ecx, 8)
    CHECK(edi, NEXT)
    mov dword ptr [PAGE_AT(NEXT)], FRAME + 3
    /* Code is overwritten. */
    mov edi, AREA + 0x5000
    mov al, 0x90
    mov ecx, 8
    rep stosb
    mov byte ptr [rdi], 0xc3
    mov r14d, 5
4:  mov r13d, AREA + 0x5000
    mov ebx, 1
    call r13
    CHECK(ebx, 1)
    mov edi, AREA + 0x5000
    mov ax, 0xc3ff
    mov ecx, 1
    rep stosw
    mov edi, AREA + 0x5002
    mov al, 0xc3
    mov ecx, 2
    rep stosb
    call r13
    CHECK(ebx, 2)
    mov edi, AREA + 0x5000
    mov al, 0x90
    mov ecx, 8
    rep stosb
    dec r14d
    jnz 4b
    ret

.data
.align 16
numbers: .quad 100, 1000, 11
.text
