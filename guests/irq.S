/* Interrupts of the local APIC: HLT, the windows behind STI and MOV SS, nesting, NMIs and their blocking.
 * expect: irq ok
 */
#include "guest.inc"

#define ICR 0xfee00300
#define EOI 0xfee000b0
#define SELF_40 0x40040
#define SELF_NMI 0x40400

main:
    mov dword ptr [0xfee000f0], 0x1ff
    mov edi, 0x40
    mov ebx, offset handler
    mov ecx, KCODE
    mov edx, 0x8e00
    call gate
    mov edi, 2
    mov ebx, offset nmi
    call gate

    /* Closed: nothing comes. */
    mov dword ptr [ICR], SELF_40
    mov ecx, 1000
1:  loop 1b
    CHECK(dword ptr [count], 0)
    /* Open behind the instruction after STI. */
    xor ebx, ebx
    sti
    inc ebx
    inc ebx
    CHECK(dword ptr [count], 1)
    CHECK(dword ptr [at_ebx], 1)
    /* STI; HLT never sleeps through what came before. */
    cli
    mov dword ptr [ICR], SELF_40
    sti
    hlt
    CHECK(dword ptr [count], 2)
    /* STI; CLI lets nothing through. */
    cli
    mov dword ptr [ICR], SELF_40
    sti
    cli
    nop
    CHECK(dword ptr [count], 2)
    /* Behind STI and MOV SS in a row: the second one may hold back for one more instruction, or not. */
    xor ebx, ebx
    mov eax, ss
    sti
    mov ss, ax
    inc ebx
    inc ebx
    CHECK(dword ptr [count], 3)
    and dword ptr [at_ebx], 0xfffffffe
    CHECK(dword ptr [at_ebx], 0)
    /* POPF opens at once. */
    cli
    mov dword ptr [ICR], SELF_40
    xor ebx, ebx
    push 0x202
    popfd
    inc ebx
    CHECK(dword ptr [at_ebx], 0)
    cli

    /* An NMI comes with interrupts closed. A second one waits for the first one's IRET. */
    mov dword ptr [ICR], SELF_NMI
    nop
    CHECK(dword ptr [nmis], 2)
    CHECK(dword ptr [deepest], 1)
    DONE("irq ok\n")

handler:
    inc dword ptr [count]
    mov [at_ebx], ebx
    mov dword ptr [EOI], 0
    iretd

nmi:
    inc dword ptr [depth]
    inc dword ptr [nmis]
    mov eax, [depth]
    cmp eax, [deepest]
    jbe 1f
    mov [deepest], eax
1:  cmp dword ptr [nmis], 1
    jne 1f
    mov dword ptr [ICR], SELF_NMI
    nop
    nop
1:  dec dword ptr [depth]
    iretd

.bss
.align 4
count: .long 0
at_ebx: .long 0
nmis: .long 0
depth: .long 0
deepest: .long 0
.text
