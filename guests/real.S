/* Real mode: leaving protected mode, vectors, far calls, and segments whose limits survive ("unreal").
 * expect: real ok
 */
#include "guest.inc"

#define LOW 0x8000

main:
    /* The 16-bit code has to be where real mode can reach it. */
    mov esi, offset low_code
    mov edi, LOW
    mov ecx, offset low_end - low_code
    rep movsb
    sgdt [saved_gdt]
    /* Vector 21h leads to `vector21`, vector 13 to `general`. */
    mov dword ptr [0x21 * 4], (LOW >> 4) << 16
    mov word ptr [0x21 * 4], offset vector21 - low_code
    mov dword ptr [13 * 4], (LOW >> 4) << 16
    mov word ptr [13 * 4], offset general - low_code
    lidt [real_idt]
    mov eax, DATA16
    mov ss, ax
    mov ds, ax
    mov gs, ax
    /* FS stays flat: its limit is what makes it unreal. */
    mov eax, KDATA
    mov fs, ax
    .byte 0xea
    .long LOW + depart - low_code
    .word CODE16
back:
    mov eax, KDATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset stack_top
    lidt [idt_pointer]
    CHECK(dword ptr [0x9000], 0x21)
    CHECK(dword ptr [0x9004], 13)
    CHECK(dword ptr [0x9008], 0x12345678)
    CHECK(dword ptr [0x900c], 0x1010)
    CHECK(dword ptr [0x9010], 0x0246)
    DONE("real ok\n")

.align 16
low_code:
.code16
depart:
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word in_real - low_code, LOW >> 4
in_real:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov es, ax
    mov sp, 0x7000
    mov fs, ax
    /* INT pushes six bytes and the handler sees IF clear. */
    sti
    mov byte ptr [0x9000], 0
    int 0x21
    cli
    /* An offset beyond 64 KiB faults in DS. */
    mov esi, 0x20000
    mov al, [esi]
after_fault:
    /* But not in FS. */
    mov ebx, offset marker
    mov eax, fs:[ebx]
    mov [0x9008], eax
    /* A far call and its return. */
    .byte 0x9a
    .word far_target - low_code, LOW >> 4
    mov [0x900c], bx
    mov word ptr [0x900e], 0
    /* PUSHF and POPF of 16 bits: IOPL and NT can be written, bit 1 stays. */
    mov ax, 0x0244
    push ax
    popf
    pushf
    pop ax
    cli
    mov [0x9010], ax
    mov word ptr [0x9012], 0
    lgdt [saved_gdt_low]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long back
    .word KCODE
far_target:
    mov bx, 0x1010
    retf
vector21:
    mov dword ptr [0x9000], 0x21
    iret
general:
    mov dword ptr [0x9004], 13
    /* The faulting instruction is skipped. */
    push bp
    mov bp, sp
    mov word ptr [bp + 2], offset after_fault - low_code
    pop bp
    iret
low_end:
.code32

.set saved_gdt_low, 0x9100
.set saved_gdt, 0x9100
.data
real_idt:
    .word 0x3ff
    .long 0
marker: .long 0x12345678
