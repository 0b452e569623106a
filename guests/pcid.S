/* Address spaces with process-context identifiers: data and code at one address in two spaces, kept over MOV to CR3 or
 * not, INVPCID of each kind, INVLPG, global pages, code that is changed while its space is not the present one.
 * expect: pcid ok
 */
#include "long.inc"

#define NOFLUSH 63
#define DATA TEST
#define CODE (TEST + 0x1000)
#define GLOBAL (TEST + 0x2000)
/* Physical pages: one for each space, and a spare one. */
#define FRAME(n) (TEST + 0x10000 + (n) * 0x1000)
#define PTE_OF(t, at) (t + ((at) >> 12 & 511) * 8)

/* CR3 = root + PCID, with or without its translations kept. */
#define SPACE(root, pcid) mov eax, offset root + pcid; mov cr3, rax
#define SPACE_KEPT(root, pcid) mov eax, offset root + pcid; bts rax, NOFLUSH; mov cr3, rax
#define INVPCID(kind, pcid, at) mov qword ptr [descriptor], pcid; mov qword ptr [descriptor + 8], at; \
    mov eax, kind; invpcid rax, [descriptor]

main64:
    /* The second space has tables of its own; all but three pages are the same. */
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
    mov dword ptr [PTE_OF(table, DATA)], FRAME(0) + 3
    mov dword ptr [PTE_OF(table, CODE)], FRAME(1) + 3
    mov dword ptr [PTE_OF(table, GLOBAL)], FRAME(4) + 0x103
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(2) + 3
    mov dword ptr [PTE_OF(table_b, CODE)], FRAME(3) + 3
    mov dword ptr [PTE_OF(table_b, GLOBAL)], FRAME(4) + 0x103
    mov dword ptr [FRAME(0)], 100
    mov dword ptr [FRAME(2)], 200
    mov dword ptr [FRAME(4)], 300
    mov dword ptr [FRAME(5)], 500
    /* mov eax, 1 (2); ret */
    mov dword ptr [FRAME(1)], 0x1b8
    mov word ptr [FRAME(1) + 4], 0xc300
    mov dword ptr [FRAME(3)], 0x2b8
    mov word ptr [FRAME(3) + 4], 0xc300
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    SPACE(pml4, 0)
    mov rax, cr4
    or eax, 0x20000
    mov cr4, rax
    SPACE(pml4, 1)

    /* To and fro, with reads, calls of both kinds and a stack in the data page. */
    mov r12d, 300
    xor r13d, r13d
    xor r14d, r14d
1:  SPACE_KEPT(pml4, 1)
    call visit
    CHECK(ebx, 101)
    SPACE_KEPT(pml4_b, 2)
    call visit
    CHECK(ebx, 202)
    dec r12d
    jnz 1b
    CHECK(r13d, 900)
    mov eax, [DATA + 8]
    CHECK(eax, 300)
    SPACE_KEPT(pml4, 1)
    mov eax, [DATA + 8]
    CHECK(eax, 300)

    /* A space that is not the present one: changed tables show after INVPCID of the page, the space, all; or after a
     * load that keeps nothing. */
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(5) + 3
    INVPCID(0, 2, DATA)
    SPACE_KEPT(pml4_b, 2)
    CHECK(dword ptr [DATA], 500)
    SPACE_KEPT(pml4, 1)
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(2) + 3
    INVPCID(1, 2, 0)
    SPACE_KEPT(pml4_b, 2)
    CHECK(dword ptr [DATA], 200)
    SPACE_KEPT(pml4, 1)
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(5) + 3
    INVPCID(3, 0, 0)
    SPACE_KEPT(pml4_b, 2)
    CHECK(dword ptr [DATA], 500)
    SPACE_KEPT(pml4, 1)
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(2) + 3
    SPACE(pml4_b, 2)
    CHECK(dword ptr [DATA], 200)
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(5) + 3
    invlpg [DATA]
    CHECK(dword ptr [DATA], 500)
    SPACE_KEPT(pml4, 1)
    CHECK(dword ptr [DATA], 100)
    mov dword ptr [PTE_OF(table, DATA)], FRAME(5) + 3
    INVPCID(0, 1, DATA)
    CHECK(dword ptr [DATA], 500)
    mov dword ptr [PTE_OF(table, DATA)], FRAME(0) + 3
    INVPCID(1, 1, 0)
    CHECK(dword ptr [DATA], 100)

    /* Global translations outlive all but INVPCID of kind 2 and INVLPG, which takes them from every space. */
    CHECK(dword ptr [GLOBAL], 300)
    mov dword ptr [PTE_OF(table, GLOBAL)], FRAME(5) + 0x103
    mov dword ptr [PTE_OF(table_b, GLOBAL)], FRAME(5) + 0x103
    SPACE(pml4_b, 2)
    SPACE(pml4, 1)
    INVPCID(2, 0, 0)
    CHECK(dword ptr [GLOBAL], 500)
    SPACE_KEPT(pml4_b, 2)
    CHECK(dword ptr [GLOBAL], 500)
    mov dword ptr [PTE_OF(table, GLOBAL)], FRAME(4) + 0x103
    mov dword ptr [PTE_OF(table_b, GLOBAL)], FRAME(4) + 0x103
    invlpg [GLOBAL]
    SPACE_KEPT(pml4, 1)
    CHECK(dword ptr [GLOBAL], 300)

    /* Code of the other space is overwritten, and data of it becomes code. */
    mov dword ptr [PTE_OF(table_b, DATA)], FRAME(2) + 3
    SPACE(pml4_b, 2)
    call visit
    CHECK(ebx, 202)
    SPACE_KEPT(pml4, 1)
    call visit
    mov byte ptr [FRAME(3) + 1], 7
    SPACE_KEPT(pml4_b, 2)
    call visit
    CHECK(ebx, 207)
    mov dword ptr [DATA + 16], 0x9b8
    mov word ptr [DATA + 20], 0xc300
    SPACE_KEPT(pml4, 1)
    mov eax, FRAME(2) + 16
    call rax
    CHECK(eax, 9)
    SPACE_KEPT(pml4_b, 2)
    mov byte ptr [DATA + 17], 11
    SPACE_KEPT(pml4, 1)
    mov eax, FRAME(2) + 16
    call rax
    CHECK(eax, 11)

    /* More spaces than any cache of them has. */
    mov r12d, 20
2:  mov r14d, 3
3:  mov eax, offset pml4_b
    test r14d, 1
    jz 4f
    mov eax, offset pml4
4:  lea ecx, [r14 + 100]
    or rax, rcx
    bts rax, NOFLUSH
    mov cr3, rax
    mov ebx, 200
    test r14d, 1
    jz 5f
    mov ebx, 100
5:  CHECK(dword ptr [DATA], ebx)
    inc r14d
    cmp r14d, 40
    jb 3b
    dec r12d
    jnz 2b
    DONE("pcid ok\n")

/* EBX = the number in the data page plus what the code page returns; counts in both. */
visit:
    mov ebx, [DATA]
    mov eax, CODE
    call rax
    add ebx, eax
    call CODE
    add r13d, eax
    inc dword ptr [DATA + 8]
    mov rdx, rsp
    mov esp, DATA + 0x800
    push rbx
    pop rcx
    mov rsp, rdx
    ret

.data
.align 16
descriptor: .quad 0, 0

.bss
.align 4096
pml4_b: .skip 4096
pdpt_b: .skip 4096
pd_b: .skip 4096
table_b: .skip 4096
.text
