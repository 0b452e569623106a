/* Debug registers: instruction and data breakpoints, single step, general detect, RF.
 * expect: debug ok
 */
#include "guest.inc"

#define CAUGHT_DB(bits) CHECK(dword ptr [ex_vector], 1) mov eax, dr6; CHECK(eax, 0xffff0ff0 | bits) \
    mov eax, 0xffff0ff0; mov dr6, eax

main:
    mov eax, cr4
    or eax, 8
    mov cr4, eax
    /* An instruction: before it is executed. */
    mov eax, offset target
    mov dr0, eax
    mov eax, 0x402
    mov dr7, eax
    xor ebx, ebx
    TRY(caught_instruction)
target:
    inc ebx
    jmp target
caught_instruction:
    CAUGHT_DB(1)
    CHECK(dword ptr [ex_eip], offset target)
    CHECK(ebx, 0)
    /* With RF it is passed once: the jump back to it is caught. */
    TRY(caught_again)
    pushfd
    or dword ptr [esp], 0x10000
    push KCODE
    push offset target
    iretd
caught_again:
    CAUGHT_DB(1)
    CHECK(ebx, 1)
    /* A word in memory: after the access, reads too. */
    xor eax, eax
    mov dr7, eax
    mov eax, offset watched
    mov dr1, eax
    mov eax, 0x700404 | 1 << 22
    mov dr7, eax
    TRY(caught_read)
    mov eax, [watched - 2]
    nop
caught_read:
    CAUGHT_DB(2)
    TRY(caught_write)
    mov byte ptr [watched + 1], 3
after_write:
    nop
caught_write:
    CAUGHT_DB(2)
    CHECK(dword ptr [ex_eip], offset after_write)
    xor eax, eax
    mov dr7, eax
    CHECK(byte ptr [watched + 1], 3)

    /* Single step; MOV SS hides one instruction. */
    TRY(caught_step)
    pushfd
    or dword ptr [esp], 0x100
    popfd
    nop
after_step:
    nop
caught_step:
    CAUGHT_DB(0x4000)
    CHECK(dword ptr [ex_eip], offset after_step)
    mov ebx, ss
    TRY(caught_ss)
    pushfd
    or dword ptr [esp], 0x100
    popfd
    mov ss, bx
    nop
after_ss:
    nop
caught_ss:
    CAUGHT_DB(0x4000)
    CHECK(dword ptr [ex_eip], offset after_ss)

    /* INT1 is a trap without bits of its own. */
    TRY(caught_icebp)
    .byte 0xf1
after_icebp:
    nop
caught_icebp:
    CAUGHT_DB(0)
    CHECK(dword ptr [ex_eip], offset after_icebp)

    /* General detect. */
    mov eax, 0x2400
    TRY(caught_gd)
    mov dr7, eax
gd:
    mov eax, dr3
caught_gd:
    CHECK(dword ptr [ex_eip], offset gd)
    CAUGHT_DB(0x2000)
    mov eax, dr7
    CHECK(eax, 0x400)
    /* DR4 does not exist with CR4.DE. */
    TRY(caught_dr4)
    mov eax, dr4
caught_dr4:
    CAUGHT(6, 0)
    DONE("debug ok\n")

.data
.align 16
    .long 0
watched: .long 0
    .long 0
.text
