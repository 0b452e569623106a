/* Two processors: INIT and start-up IPIs, locked counters, cross-modifying code, an interrupt between processors.
 * expect: smp ok
 */
#include "guest.inc"

#include "second.inc"

main:
    mov edi, 0x40
    mov ebx, offset handler
    mov ecx, KCODE
    mov edx, 0x8e00
    call gate
    call start_second

    /* Both add to one counter. */
    mov dword ptr [go], 1
    mov ecx, 100000
1:  lock inc dword ptr [counter]
    dec ecx
    jnz 1b
2:  pause
    cmp dword ptr [done], 1
    jne 2b
    CHECK(dword ptr [counter], 200000)

    /* The other one runs `patched` for ever; what we write there it executes soon. */
    mov ecx, 100
3:  mov byte ptr [patched + 1], cl
4:  pause
    cmp byte ptr [seen], cl
    jne 4b
    dec ecx
    jnz 3b

    /* It halts; an interrupt wakes it. */
    mov byte ptr [patched + 1], 0
5:  pause
    cmp dword ptr [done], 2
    jne 5b
    mov dword ptr [ICR], 0x4040
6:  pause
    cmp dword ptr [interrupts], 1
    jne 6b
    DONE("smp ok\n")

second:
1:  pause
    cmp dword ptr [go], 1
    jne 1b
    mov ecx, 100000
1:  lock inc dword ptr [counter]
    dec ecx
    jnz 1b
    mov dword ptr [done], 1
1:  call patched
    mov [seen], al
    test al, al
    jnz 1b
    mov dword ptr [done], 2
    sti
1:  hlt
    jmp 1b

handler:
    mov dword ptr [0xfee000b0], 0
    inc dword ptr [interrupts]
    iretd

.align 64
patched:
    mov eax, 255
    ret
.align 64

.bss
.align 64
go: .skip 64
done: .skip 64
counter: .skip 64
seen: .skip 64
interrupts: .skip 64
.text
