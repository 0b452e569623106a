/* Self-modifying code: the next instruction, a loop's body, code behind an alias, code across pages, copied code.
 * expect: smc ok
 */
#include "guest.inc"

main:
    /* The instruction right behind the store. */
    mov eax, 1
    mov byte ptr [next + 1], 7
next:
    mov eax, 1
    CHECK(eax, 7)

    /* A loop that counts itself up: each turn executes what the last one wrote. */
    xor ebx, ebx
    mov ecx, 200
1:  add byte ptr [step + 2], 1
step:
    add ebx, 0
    dec ecx
    jnz 1b
    /* The sum of 1 to 200, each as a signed byte. */
    CHECK(ebx, 1412)

    /* A function copied over another one, called in between. */
    mov edi, offset area + 4090
    mov esi, offset first
    mov ecx, first_end - first
    rep movsb
    mov eax, offset area + 4090
    call eax
    CHECK(eax, 0x11111111)
    /* Only bytes on the second page change. */
    mov dword ptr [area + 4096], 0x90909090
    mov edi, offset area + 4090
    mov esi, offset second
    mov ecx, second_end - second
    rep movsb
    mov eax, offset area + 4090
    call eax
    CHECK(eax, 0x22222222)
    mov byte ptr [area + 4090 + 8], 0x33
    mov eax, offset area + 4090
    call eax
    CHECK(eax, 0x33222222)

    /* The same memory at another address: 8 MiB higher. */
    mov dword ptr [directory], 0x83
    mov dword ptr [directory + 8], 0x83
    mov eax, offset directory
    mov cr3, eax
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov ecx, 2
    xor ebx, ebx
1:  mov byte ptr [alias + 1 + 0x800000], cl
alias:
    mov eax, 0x55
    add ebx, eax
    loop 1b
    CHECK(ebx, 3)

    /* A locked exchange, a string store and a push as writers. */
    mov al, 9
    lock xchg byte ptr [alias2 + 1], al
    jmp alias2
alias2:
    mov eax, 0
    CHECK(eax, 9)
    mov edi, offset alias3 + 1
    mov al, 4
    stosb
alias3:
    mov eax, 0
    CHECK(eax, 4)
    mov ebx, esp
    mov esp, offset alias4 + 5
    push 0x77
alias4:
    mov eax, 0
    mov esp, ebx
    CHECK(eax, 0x77)
    DONE("smc ok\n")

first:
    nop
    nop
    mov eax, 0x11111111
    ret
first_end:
/* The immediate crosses the page. */
second:
    nop
    nop
    nop
    nop
    mov eax, 0x22222222
    ret
second_end:

.bss
.align 4096
area: .skip 8192
directory: .skip 4096
.text
