/* Hardware tasks: CALL and IRET, JMP, task gates, nesting, faults during the switch.
 * expect: task ok
 */
#include "guest.inc"

#define TSS2 FREE_SEL
#define TASK_GATE (FREE_SEL + 8)

.macro FAR_CALL selector
    .byte 0x9a
    .long 0
    .word \selector
.endm
.macro FAR_JMP selector
    .byte 0xea
    .long 0
    .word \selector
.endm

main:
    mov edi, TSS2
    mov ecx, offset tss2
    mov ebx, 103
    mov edx, 0x8900
    call segment
    mov dword ptr [tss2 + 0x24], 2
    mov dword ptr [tss2 + 0x48], KDATA
    mov dword ptr [tss2 + 0x4c], KCODE
    mov dword ptr [tss2 + 0x50], KDATA
    mov dword ptr [tss2 + 0x54], KDATA
    mov word ptr [gdt + TASK_GATE + 2], TSS2
    mov word ptr [gdt + TASK_GATE + 4], 0x8500

    /* CALL a task, which returns. */
    call fresh
    mov dword ptr [tss2 + 0x20], offset other
    mov ebx, 1
    FAR_CALL TSS2
    CHECK(ebx, 1)
    CHECK(dword ptr [seen], 2)
    CHECK(word ptr [tss2], TSS_SEL)
    str ax
    CHECK(ax, TSS_SEL)
    mov eax, cr0
    and eax, 8
    CHECK(eax, 8)
    clts
    pushfd
    pop eax
    and eax, 0x4000
    CHECK(eax, 0)
    /* Called again it goes on after its IRET. */
    FAR_CALL TSS2
    CHECK(dword ptr [seen], 3)

    /* Through a task gate. */
    call fresh
    mov dword ptr [tss2 + 0x20], offset other
    FAR_CALL TASK_GATE
    CHECK(dword ptr [seen], 2)

    /* JMP there and back: no nesting. */
    call fresh
    mov dword ptr [tss2 + 0x20], offset jumped
    FAR_JMP TSS2
    CHECK(dword ptr [seen], 4)
    CHECK(byte ptr [gdt + TSS2 + 5], 0x89)
    CHECK(byte ptr [gdt + TSS_SEL + 5], 0x8b)

    /* A busy task. */
    TRY(caught_busy)
    FAR_JMP TSS_SEL
caught_busy:
    CAUGHT(13, TSS_SEL)

    /* A TSS that is too short. */
    mov word ptr [gdt + TSS2], 102
    TRY(caught_short)
    FAR_CALL TSS2
caught_short:
    CAUGHT(10, TSS2)
    mov word ptr [gdt + TSS2], 103

    /* #GP by a task gate: the code lies on the new task's stack. */
    call fresh
    mov dword ptr [tss2 + 0x20], offset gp_task
    mov edi, 13
    mov ebx, 0
    mov ecx, TSS2
    mov edx, 0x8500
    call gate
    mov eax, 0x1234
    mov fs, ax
    CHECK(dword ptr [seen], 0x1234)

    /* An interrupt by a task gate returns to the next instruction. */
    call fresh
    mov dword ptr [tss2 + 0x20], offset other
    mov edi, 0x70
    mov ebx, 0
    mov ecx, TSS2
    mov edx, 0x8500
    call gate
    int 0x70
    CHECK(dword ptr [seen], 2)
    DONE("task ok\n")

/* The second task from its start. */
fresh:
    mov dword ptr [seen], 0
    mov dword ptr [tss2 + 0x38], offset ring0_top
    mov dword ptr [tss2 + 0x24], 2
    and byte ptr [gdt + TSS2 + 5], 0xfd
    ret

other:
    mov ebx, 2
    mov [seen], ebx
    str ax
    CHECK(ax, TSS2)
    pushfd
    pop eax
    and eax, 0x4000
    CHECK(eax, 0x4000)
    iretd
    inc dword ptr [seen]
    iretd

jumped:
    mov dword ptr [seen], 4
    pushfd
    pop eax
    and eax, 0x4000
    CHECK(eax, 0)
    FAR_JMP TSS_SEL

gp_task:
    pop [seen]
    /* Behind MOV FS. */
    add dword ptr [tss + 0x20], 2
    iretd

.bss
tss2: .skip 104
seen: .long 0
.text
