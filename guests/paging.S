/* 32-bit and PAE paging: error codes, accessed and dirty bits, write protection, large pages, execute-disable, stale
 * translations, reserved bits.
 * expect: paging ok
 */
#include "guest.inc"

#define TEST 0x200000
#define PTE (table + (TEST >> 12 & 1023) * 4)

main:
    /* Identity mapping of 4 MiB by small pages, for all. */
    mov dword ptr [directory], offset table + 7
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 12
    or eax, 7
    mov [table + ecx * 4], eax
    inc ecx
    cmp ecx, 1024
    jb 1b
    mov eax, offset directory
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax

    /* Accessed by a read, dirty by a write. */
    mov eax, [TEST]
    CHECK(byte ptr [PTE], 0x27)
    mov [TEST], eax
    CHECK(byte ptr [PTE], 0x67)

    /* Not present. The old translation is dropped by INVLPG. */
    mov dword ptr [PTE], 0
    invlpg [TEST]
    TRY(not_present)
    mov eax, [TEST + 4]
not_present:
    CAUGHT(14, 0)
    mov eax, cr2
    CHECK(eax, TEST + 4)
    /* Read-only, also for the kernel with CR0.WP. */
    mov dword ptr [PTE], TEST + 5
    TRY(read_only)
    mov [TEST], eax
read_only:
    CAUGHT(14, 3)
    mov eax, cr0
    and eax, 0xfffeffff
    mov cr0, eax
    mov dword ptr [TEST], 5
    or eax, 0x10000
    mov cr0, eax
    TRY(read_only_again)
    mov [TEST], eax
read_only_again:
    CAUGHT(14, 3)
    /* A write that begins on a good page and ends on a bad one writes nothing. */
    mov dword ptr [TEST - 4], 0
    TRY(crossing)
    mov dword ptr [TEST - 2], -1
crossing:
    CAUGHT(14, 3)
    mov eax, cr2
    CHECK(eax, TEST)
    CHECK(dword ptr [TEST - 4], 0)
    /* Ring 3: a page of the kernel. */
    mov dword ptr [PTE], TEST + 3
    invlpg [TEST]
    TRY(supervisor)
    mov ecx, offset user_read
    jmp ring3
supervisor:
    CAUGHT(14, 5)
    TRY(supervisor_write)
    mov ecx, offset user_write
    jmp ring3
supervisor_write:
    CAUGHT(14, 7)
    TRY(supervisor_fetch)
    mov ecx, TEST
    jmp ring3
supervisor_fetch:
    CAUGHT(14, 5)
    CHECK(dword ptr [ex_eip], TEST)

    /* A large page, and its reserved bit. */
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov dword ptr [directory + 8], 0x83
    mov eax, [TEST]
    CHECK([0x800000 + TEST], eax)
    mov dword ptr [directory + 12], 0x200083
    TRY(reserved)
    mov eax, [0xc00000]
reserved:
    CAUGHT(14, 9)

    /* PAE. Paging goes off meanwhile. */
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov dword ptr [pointers], offset directory_pae + 1
    mov dword ptr [directory_pae], offset table_pae + 7
    mov dword ptr [directory_pae + 8], 0x200000 + 0xe7
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 12
    or eax, 7
    mov [table_pae + ecx * 8], eax
    inc ecx
    cmp ecx, 512
    jb 1b
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset pointers
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x800
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov dword ptr [TEST], 0xc3
    /* Execute-disable. */
    or dword ptr [directory_pae + 12], 0x80000000
    invlpg [TEST]
    TRY(no_execute)
    mov ecx, TEST
    jmp ecx
no_execute:
    CAUGHT(14, 0x11)
    and dword ptr [directory_pae + 12], 0x7fffffff
    invlpg [TEST]
    mov eax, TEST
    call eax
    /* An address bit that does not exist. */
    or dword ptr [directory_pae + 12], 0x80000
    invlpg [TEST]
    TRY(reserved_pae)
    mov [TEST], eax
reserved_pae:
    CAUGHT(14, 0xb)
    and dword ptr [directory_pae + 12], 0xfff7ffff
    /* The pointers are only read with CR3, and looked at then. */
    mov dword ptr [pointers + 8], 0x1e7
    mov eax, [TEST]
    TRY(pointer)
    mov eax, cr3
    mov cr3, eax
pointer:
    CAUGHT(13, 0)
    DONE("paging ok\n")

ring3:
    push UDATA
    push offset ring3_top
    pushfd
    push UCODE
    push ecx
    iretd
user_read:
    mov eax, UDATA
    mov ds, ax
    mov eax, [TEST]
user_write:
    mov eax, UDATA
    mov ds, ax
    mov [TEST], eax

.bss
.align 4096
directory: .skip 4096
table: .skip 4096
directory_pae: .skip 4096
table_pae: .skip 4096
pointers: .skip 32
.text
