/* More code than a small translation cache holds: two processors call many functions, one upwards, the other downwards.
 * expect: many ok
 */
#include "guest.inc"
#include "second.inc"

#define FUNCTIONS 4096
#define ROUNDS 3
/* Each adds its number. */
#define SUM (FUNCTIONS * (FUNCTIONS - 1) / 2 * ROUNDS)

main:
    call start_second
    mov ebp, ROUNDS
    xor eax, eax
1:  xor ebx, ebx
2:  call called
    inc ebx
    cmp ebx, FUNCTIONS
    jb 2b
    dec ebp
    jnz 1b
    CHECK(eax, SUM)
3:  pause
    cmp dword ptr [done], 1
    jne 3b
    CHECK(dword ptr [sum], SUM)
    DONE("many ok\n")

second:
    mov ebp, ROUNDS
    xor eax, eax
1:  mov ebx, FUNCTIONS - 1
2:  call called
    sub ebx, 1
    jns 2b
    dec ebp
    jnz 1b
    mov [sum], eax
    mov dword ptr [done], 1
4:  hlt
    jmp 4b

/* Calls function EBX. */
called:
    mov edx, ebx
    shl edx, 4
    add edx, offset functions
    jmp edx

.align 16
functions:
.set number, 0
.rept FUNCTIONS
    push ecx
    mov ecx, number
    add eax, ecx
    pop ecx
    ret
.align 16
.set number, number + 1
.endr

.bss
.align 64
done: .skip 64
sum: .skip 64
.text
