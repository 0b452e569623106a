/* Operands of x87, SSE and others in device memory, which reads as ones: instructions that emulators of hypervisors do not
 * know. Code around them is overwritten meanwhile, so that whoever executes them must not keep an older form of it.
 * expect: mmio ok
 */
#include "guest.inc"

#define DEVICE 0xd0000000

main:
    mov eax, cr4
    or eax, 0x200
    mov cr4, eax
    fninit
    mov ebp, 1
round:
    fild dword ptr [DEVICE]
    mov [value], ebp
    fild dword ptr [value]
    faddp st(1), st
    fistp dword ptr [value]
    mov eax, [value]
    inc eax
    CHECK(eax, ebp)
    movd xmm0, ebp
    paddd xmm0, [DEVICE + 16]
    movd eax, xmm0
    inc eax
    CHECK(eax, ebp)
    movdqu [DEVICE + 32], xmm0
    pxor xmm1, xmm1
    psubb xmm1, [DEVICE + 48]
    movd eax, xmm1
    CHECK(eax, 0x01010101)
    mov [changed + 1], ebp
    call changed
    CHECK(eax, ebp)
    /* The flags of a comparison are kept over what follows it. */
    cmp ebp, 500
    fild qword ptr [DEVICE + 64]
    fstp st(0)
    jae 1f
    inc ebp
    jmp round
1:  DONE("mmio ok\n")

changed:
    mov eax, 0
    fild word ptr [DEVICE + 2]
    fistp word ptr [value]
    cmp word ptr [value], -1
    je 1f
    xor eax, eax
1:  ret

.data
value: .long 0
