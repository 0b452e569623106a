/* Two processors: INIT and start-up IPIs, locked counters, cross-modifying code, an interrupt between processors.
 * expect: smp ok
 */
#include "guest.inc"

#define ICR 0xfee00300
#define ICR_HIGH 0xfee00310
#define LOW 0x8000

main:
    mov dword ptr [0xfee000f0], 0x1ff
    mov esi, offset low_code
    mov edi, LOW
    mov ecx, offset low_end - low_code
    rep movsb
    sgdt [0x9000]
    mov edi, 0x40
    mov ebx, offset handler
    mov ecx, KCODE
    mov edx, 0x8e00
    call gate
    mov dword ptr [ICR_HIGH], 1 << 24
    mov dword ptr [ICR], 0x4500
    mov dword ptr [ICR], 0x4600 | LOW >> 12
1:  pause
    cmp dword ptr [alive], 1
    jne 1b

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
    mov eax, KDATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset ring0_top
    lidt [idt_pointer]
    mov dword ptr [0xfee000f0], 0x1ff
    mov dword ptr [alive], 1
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

low_code:
.code16
    cli
    xor ax, ax
    mov ds, ax
    lgdt [0x9000]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long second
    .word KCODE
low_end:
.code32

.bss
.align 64
alive: .skip 64
go: .skip 64
done: .skip 64
counter: .skip 64
seen: .skip 64
interrupts: .skip 64
.text
