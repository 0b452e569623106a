/* Long mode: canonical addresses, 4-level paging with NX, SMEP and SMAP, interrupt stacks, SYSCALL, compatibility mode
 * and the call gate out of it.
 * expect: long ok
 */
#include "long.inc"

#define CODE64_GATE 0x80
#define UCODE64 0x63
#define UDATA64 0x5b

main64:
    /* Addresses that are not canonical: data, stack, code. */
    mov rbx, 0x800000000000
    TRY(data)
    mov eax, [rbx]
data:
    CAUGHT(13, 0)
    TRY(stack)
    lea rsp, [rbx + 8]
    push rax
stack:
    /* The fault's own frame went to the interrupt stack. */
    CAUGHT(12, 0)
    TRY(code)
    jmp rbx
code:
    CAUGHT(13, 0)

    /* A page table of its own for 2 MiB: present, write, user, no-execute. */
    mov dword ptr [TEST], 0xc3
    mov eax, TEST
    call rax
    mov dword ptr [PTE + 4], 0x80000000
    invlpg [TEST]
    TRY(no_execute)
    mov ecx, TEST
    jmp rcx
no_execute:
    CAUGHT(14, 0x11)
    mov rax, cr2
    CHECK(rax, TEST)
    mov dword ptr [PTE + 4], 0
    invlpg [TEST]
    mov eax, [0x40000000 + TEST]
    CHECK(eax, 0xc3)

    /* SMEP and SMAP. */
    mov dword ptr [PTE], TEST + 7
    invlpg [TEST]
    mov eax, 0x100020
    mov cr4, rax
    TRY(smep)
    mov ecx, TEST
    jmp rcx
smep:
    CAUGHT(14, 0x11)
    mov eax, 0x200020
    mov cr4, rax
    TRY(smap)
    mov eax, [TEST]
smap:
    CAUGHT(14, 1)
    stac
    mov eax, [TEST]
    CHECK(eax, 0xc3)
    clac
    TRY(smap_write)
    mov [TEST], eax
smap_write:
    CAUGHT(14, 3)
    mov eax, 0x20
    mov cr4, rax

    /* Ring 3 by SYSRET, back by SYSCALL. */
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00530000 | CODE64
    wrmsr
    mov ecx, 0xc0000082
    mov eax, offset entry
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x200
    wrmsr
    mov dword ptr [TEST], 0x0f02c083
    mov word ptr [TEST + 4], 0xf405
    mov [kernel_rsp], rsp
    mov ecx, TEST
    mov r11d, 0x202
    mov eax, 40
    .byte 0x48, 0x0f, 0x07 /* SYSRETQ */
entry:
    mov rsp, [kernel_rsp]
    CHECK(eax, 42)
    CHECK(rcx, TEST + 5)
    CHECK(r11, 0x202)
    mov eax, cs
    CHECK(eax, CODE64)
    pushfq
    pop rax
    and eax, 0x300
    CHECK(eax, 0)
    /* Once more, and HLT in ring 3 is refused on the stack of the TSS. */
    TRY(user_hlt)
    mov r11d, 2
    mov ecx, TEST + 5
    .byte 0x48, 0x0f, 0x07 /* SYSRETQ */
user_hlt:
    CAUGHT(13, 0)
    CHECK(dword ptr [ex_cs], UCODE64)
    CHECK(dword ptr [ex_ss], UDATA64)

    /* IRET with NT. */
    TRY(nested)
    pushfq
    or dword ptr [rsp], 0x4000
    popfq
    push KDATA
    push rsp
    pushfq
    push CODE64
    push offset nested
    iretq
nested:
    CAUGHT(13, 0)
    pushfq
    and dword ptr [rsp], 0xffffbfff
    popfq

    /* Compatibility mode, and back through a 64-bit call gate. */
    mov eax, offset through
    mov word ptr [gdt + CODE64_GATE], ax
    mov word ptr [gdt + CODE64_GATE + 2], CODE64
    mov word ptr [gdt + CODE64_GATE + 4], 0x8c00
    shr eax, 16
    mov word ptr [gdt + CODE64_GATE + 6], ax
    mov qword ptr [gdt + CODE64_GATE + 8], 0
    mov eax, KDATA
    mov ss, ax
    mov [kernel_rsp], rsp
    push KCODE
    push offset compat
    .byte 0x48, 0xcb /* RETFQ */
through:
    CHECK(word ptr [rsp + 8], KCODE)
    mov rsp, [kernel_rsp]
    CHECK(ebx, 5)
    DONE("long ok\n")

.code32
compat:
    mov ebx, 4
    /* Here the byte 48h is DEC EAX, not a prefix. */
    mov eax, 1
    .byte 0x48
    add ebx, 1
    .byte 0x9a
    .long 0
    .word CODE64_GATE
.code64

.data
kernel_rsp: .quad 0
