/* Privilege levels: call gates with parameters, interrupts from ring 3, returns outwards, and the faults of each.
 * expect: gates ok
 */
#include "guest.inc"

#define GATE FREE_SEL
#define TSS2 (FREE_SEL + 8)

main:
    /* A call gate of level 3 to `inner`, with two parameters. */
    mov eax, offset inner
    mov word ptr [gdt + GATE], ax
    mov word ptr [gdt + GATE + 2], KCODE
    mov word ptr [gdt + GATE + 4], 0xec02
    shr eax, 16
    mov word ptr [gdt + GATE + 6], ax
    mov edi, 0x60
    mov ebx, offset stubs + 0x60 * 16
    mov ecx, KCODE
    mov edx, 0xee00
    call gate

    TRY(caught_60)
    mov ecx, offset user
    jmp ring3
caught_60:
    CAUGHT(0x60, 0)
    CHECK(dword ptr [ex_cs], UCODE)
    CHECK(dword ptr [ex_eax], 0x33)
    CHECK(dword ptr [ex_esp], offset ring3_top)

    /* Ring 3: a gate of level 0. */
    TRY(caught_int)
    mov ecx, offset user_int
    jmp ring3
caught_int:
    CAUGHT(13, 0x61 * 8 + 2)
    /* Ring 3: privileged instructions. */
    TRY(caught_hlt)
    mov ecx, offset user_hlt
    jmp ring3
caught_hlt:
    CAUGHT(13, 0)
    CHECK(dword ptr [ex_eip], offset user_hlt)
    /* Ring 3: a kernel data segment. */
    TRY(caught_ds)
    mov ecx, offset user_ds
    jmp ring3
caught_ds:
    CAUGHT(13, KDATA)

    /* The stack of the gate is not there. */
    mov dword ptr [tss + 8], 0x1000
    TRY(caught_ts)
    mov ecx, offset user
    jmp ring3_after
caught_ts:
    CAUGHT(10, 0x1000)
    mov dword ptr [tss + 8], KDATA

    /* Returns: null code segment, too privileged, stack of the wrong level. */
    TRY(caught_null)
    push 0
    push 0
    retf
caught_null:
    CAUGHT(13, 0)
    TRY(caught_stack)
    push KDATA
    push offset ring3_top
    pushfd
    push UCODE
    push offset user
    iretd
caught_stack:
    CAUGHT(13, KDATA)
    /* A segment that is not present. */
    and byte ptr [gdt + (UDATA & ~7) + 5], 0x7f
    TRY(caught_np)
    mov eax, UDATA
    mov es, ax
caught_np:
    CAUGHT(11, UDATA & ~3)
    TRY(caught_ss)
    mov eax, UDATA
    push eax
    push offset ring3_top
    pushfd
    push UCODE
    push offset user
    iretd
caught_ss:
    CAUGHT(12, UDATA & ~3)
    or byte ptr [gdt + (UDATA & ~7) + 5], 0x80

    /* LAR, LSL, VERR, VERW, ARPL. */
    mov ecx, UCODE
    lar eax, ecx
    jz 1f
    FAIL(__LINE__)
1:  and eax, 0xf0ff00
    CHECK(eax, 0xc0fb00)
    mov ecx, TSS_SEL
    lsl eax, ecx
    CHECK(eax, 105)
    mov ecx, UCODE
    verw cx
    jnz 1f
    FAIL(__LINE__)
1:  verr cx
    jz 1f
    FAIL(__LINE__)
1:  mov eax, 0x40
    mov ecx, 3
    arpl ax, cx
    CHECK(eax, 0x43)
    DONE("gates ok\n")

/* Goes to ECX in ring 3. */
ring3:
    push UDATA
    push offset ring3_top
    pushfd
    push UCODE
    push ecx
    iretd
/* The same with the ring 0 stack of the gate spoilt: only the call uses it, the exception is caught on a good one. */
ring3_after:
    mov edi, 10
    mov ebx, offset ts_handler
    mov ecx, TSS2
    mov edx, 0x8500
    call gate
    mov edi, TSS2
    mov ecx, offset tss2
    mov ebx, 103
    mov edx, 0x8900
    call segment
    mov dword ptr [tss2 + 0x20], offset ts_handler
    mov dword ptr [tss2 + 0x24], 2
    mov dword ptr [tss2 + 0x38], offset ring0_top - 4096
    mov dword ptr [tss2 + 0x48], KDATA
    mov dword ptr [tss2 + 0x4c], KCODE
    mov dword ptr [tss2 + 0x50], KDATA
    mov dword ptr [tss2 + 0x54], KDATA
    mov ecx, offset user
    jmp ring3
ts_handler:
    /* In a task of its own: the code is on top of its stack, the rest in the old TSS. */
    pop [ex_code]
    mov dword ptr [ex_vector], 10
    mov dword ptr [ex_cs], UCODE
    /* Back to the first task's level 0 by hand. */
    and byte ptr [gdt + TSS_SEL + 5], 0xfd
    and byte ptr [gdt + TSS2 + 5], 0xfd
    mov eax, TSS_SEL
    ltr ax
    pushfd
    and dword ptr [esp], 0xffffbfff
    popfd
    mov esp, [resume_esp]
    mov dword ptr [resume], 0
    mov edi, 10
    mov ebx, offset stubs + 10 * 16
    mov ecx, KCODE
    mov edx, 0x8e00
    call gate
    jmp caught_ts

inner:
    CHECK(dword ptr [esp + 8], 0x22)
    CHECK(dword ptr [esp + 12], 0x11)
    CHECK(dword ptr [esp + 4], UCODE)
    mov eax, cs
    CHECK(eax, KCODE)
    mov eax, 0x33
    retf 8

user:
    push 0x11
    push 0x22
    .byte 0x9a
    .long 0
    .word GATE | 3
    int 0x60
user_int:
    int 0x61
user_hlt:
    hlt
user_ds:
    mov eax, KDATA
    mov ds, ax

.bss
tss2: .skip 104
.text
