/* An instruction on two pages, reached by falling into it, by jumps from its page and from another, and by calls: the second
 * page is mapped elsewhere, is another in a second address space, is written to, and goes away.
 * expect: crossing ok
 */
#include "long.inc"

/* The function begins a little before the end of its page; its MOV has two bytes of four of the number there. */
#define CODE (TEST + 0x10000)
#define NEXT (CODE + 0x1000)
#define FUNCTION (CODE + 0xff0)
#define MOVE (CODE + 0xffd)
#define FRAME(n) (TEST + 0x40000 + (n) * 0x1000)
#define PTE_OF(t, at) (t + ((at) >> 12 & 511) * 8)
#define NOFLUSH 63
#define SPACE_KEPT(root, pcid) mov eax, offset root + pcid; bts rax, NOFLUSH; mov cr3, rax

main64:
    mov rsp, TEST + 0x1ff000
    mov esi, offset table
    mov edi, offset table_b
    mov ecx, 4096
    rep movsb
    mov esi, offset pd
    mov edi, offset pd_b
    mov ecx, 4096
    rep movsb
    mov dword ptr [pd_b + 8], offset table_b + 7
    mov esi, offset pdpt
    mov edi, offset pdpt_b
    mov ecx, 4096
    rep movsb
    mov dword ptr [pdpt_b], offset pd_b + 7
    mov dword ptr [pml4_b], offset pdpt_b + 7
    mov dword ptr [PTE_OF(table_b, NEXT)], FRAME(2) + 3
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    mov eax, offset pml4
    mov cr3, rax
    mov rax, cr4
    or eax, 0x20000
    mov cr4, rax
    mov eax, offset pml4 + 1
    mov cr3, rax

    /* nop (13); mov eax, 0xNNNN5678 */
    mov edi, FUNCTION
    mov al, 0x90
    mov ecx, 13
    rep stosb
    mov byte ptr [rdi], 0xb8
    mov word ptr [rdi + 1], 0x5678
    /* NNNN; add ecx, eax; ret: in three frames. */
    mov word ptr [FRAME(0)], 0x1111
    mov dword ptr [FRAME(0) + 2], 0xc3c101
    mov word ptr [FRAME(1)], 0x2222
    mov dword ptr [FRAME(1) + 2], 0xc3c101
    mov word ptr [FRAME(2)], 0x3333
    mov dword ptr [FRAME(2) + 2], 0xc3c101
    /* jmp MOVE, from the page and from another. */
    mov byte ptr [CODE + 0x100], 0xe9
    mov dword ptr [CODE + 0x101], MOVE - (CODE + 0x105)
    mov byte ptr [FRAME(4)], 0xe9
    mov dword ptr [FRAME(4) + 1], MOVE - (FRAME(4) + 5)

    mov r15d, 100
again:
    mov dword ptr [PTE_OF(table, NEXT)], FRAME(0) + 3
    invlpg [NEXT]
    mov ebx, 0x11115678
    call all
    mov dword ptr [PTE_OF(table, NEXT)], FRAME(1) + 3
    invlpg [NEXT]
    mov ebx, 0x22225678
    call all
    SPACE_KEPT(pml4_b, 2)
    mov ebx, 0x33335678
    call all
    SPACE_KEPT(pml4, 1)
    mov ebx, 0x22225678
    call all
    /* By the mapping itself, by another one, and in the first page. */
    mov word ptr [NEXT], 0x4444
    mov ebx, 0x44445678
    call all
    mov word ptr [FRAME(1)], 0x2222
    mov ebx, 0x22225678
    call all
    mov word ptr [MOVE + 1], 0x9999
    mov ebx, 0x22229999
    call all
    mov word ptr [MOVE + 1], 0x5678
    /* The rest is absent. */
    mov dword ptr [PTE_OF(table, NEXT)], 0
    invlpg [NEXT]
    TRY(1f)
    mov eax, 5
    mov edx, FUNCTION
    jmp rdx
1:  CHECK(dword ptr [ex_vector], 14)
    CHECK(dword ptr [ex_eip], MOVE)
    mov rax, cr2
    CHECK(rax, NEXT)
    dec r15d
    jnz again
    DONE("crossing ok\n")

/* Every way there, some times each; the number must be EBX. */
all:
    mov r14d, 5
1:  xor ecx, ecx
    call FUNCTION
    CHECK(eax, ebx)
    CHECK(ecx, ebx)
    mov edx, FUNCTION
    call rdx
    CHECK(eax, ebx)
    call CODE + 0x100
    CHECK(eax, ebx)
    call FRAME(4)
    CHECK(eax, ebx)
    call MOVE
    CHECK(eax, ebx)
    lea edx, [rbx + rbx * 4]
    CHECK(ecx, edx)
    dec r14d
    jnz 1b
    ret

.bss
.align 4096
pml4_b: .skip 4096
pdpt_b: .skip 4096
pd_b: .skip 4096
table_b: .skip 4096
.text
