/* Long mode: canonical addresses, 4-level paging with NX, SMEP and SMAP, interrupt stacks, SYSCALL, compatibility mode
 * and the call gate out of it.
 * expect: long ok
 */
#include "guest.inc"

#define TEST 0x200000
#define PTE (table + (TEST >> 12 & 511) * 8)
#define CODE64_GATE 0x80
#define UCODE64 0x63
#define UDATA64 0x5b

#undef TRY
#define TRY(label) mov dword ptr [resume], offset label; mov [resume_rsp], rsp
#undef DONE
#define DONE(text) mov esi, offset 7f; mov edx, COM1; 5: lodsb; test al, al; jz 6f; out dx, al; jmp 5b; \
    6: xor eax, eax; out EXIT, eax; 4: hlt; jmp 4b; 7: .asciz text; .align 16

main:
    mov dword ptr [pml4], offset pdpt + 7
    mov dword ptr [pdpt], offset pd + 7
    mov dword ptr [pdpt + 8], 0x87
    mov dword ptr [pd], 0x83
    mov dword ptr [pd + 8], offset table + 7
    mov dword ptr [pd + 16], 0x400087
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 12
    add eax, TEST + 3
    mov [table + ecx * 8], eax
    inc ecx
    cmp ecx, 512
    jb 1b
    /* SYSRET wants 32-bit code, data and 64-bit code in a row: 50h, 58h, 60h. */
    mov dword ptr [gdt + 0x50 + 4], 0x00cffb00
    mov dword ptr [gdt + 0x50], 0xffff
    mov dword ptr [gdt + 0x58 + 4], 0x00cff300
    mov dword ptr [gdt + 0x58], 0xffff
    mov dword ptr [gdt + 0x60 + 4], 0x00affb00
    mov dword ptr [gdt + 0x60], 0xffff
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
    .long start64
    .word CODE64

.code64
start64:
    xor edi, edi
1:  mov ebx, edi
    shl ebx, 4
    add ebx, offset stubs64
    call gate64
    inc edi
    cmp edi, 256
    jb 1b
    lidt [idt64_pointer]
    /* The TSS has 16 bytes of descriptor now: 70h. */
    mov eax, offset tss
    mov word ptr [gdt + 0x70], 103
    mov word ptr [gdt + 0x72], ax
    shr eax, 16
    mov byte ptr [gdt + 0x74], al
    mov byte ptr [gdt + 0x75], 0x89
    mov qword ptr [gdt + 0x78], 0
    mov eax, 0x70
    ltr ax
    mov qword ptr [tss + 4], offset ring0_top
    mov qword ptr [tss + 0x24], offset ist_top

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

/* Gate EDI of the long-mode IDT leads to EBX on the first interrupt stack. */
gate64:
    mov eax, edi
    shl eax, 4
    mov word ptr [idt64 + rax], bx
    mov word ptr [idt64 + rax + 2], CODE64
    mov word ptr [idt64 + rax + 4], 0x8e01
    shr ebx, 16
    mov word ptr [idt64 + rax + 6], bx
    mov qword ptr [idt64 + rax + 8], 0
    ret

.align 16
stubs64:
.set vector, 0
.rept 256
.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    push 0
.endif
    push vector
    jmp caught64
.align 16
.set vector, vector + 1
.endr

caught64:
    mov [ex_eax], eax
    pop rax
    mov [ex_vector], eax
    pop rax
    mov [ex_code], eax
    pop rax
    mov [ex_eip], eax
    pop rax
    mov [ex_cs], eax
    pop rax
    mov [ex_flags], eax
    pop rax
    mov [ex_esp], eax
    pop rax
    mov [ex_ss], eax
    cmp dword ptr [resume], 0
    je 1f
    mov rsp, [resume_rsp]
    mov eax, [resume]
    mov dword ptr [resume], 0
    jmp rax
1:  mov eax, [ex_vector]
    add eax, 10000
    out EXIT, eax
2:  hlt
    jmp 2b

.data
idt64_pointer:
    .word 256 * 16 - 1
    .quad idt64
resume_rsp: .quad 0
kernel_rsp: .quad 0
ex_ss: .long 0

.bss
.align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4096
table: .skip 4096
idt64: .skip 4096
    .skip 4096
ist_top:
.text
