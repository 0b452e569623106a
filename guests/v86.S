/* Virtual-8086 mode: entry by IRET, sensitive instructions with and without IOPL, the frame of an interrupt, ports.
 * expect: v86 ok
 */
#include "guest.inc"

#define LOW 0x8000

main:
    mov esi, offset low_code
    mov edi, LOW
    mov ecx, offset low_end - low_code
    rep movsb

    /* CLI with IOPL 0 faults. */
    TRY(caught_cli)
    mov ebx, 0x20002
    mov ecx, offset v_cli - low_code
    jmp enter
caught_cli:
    CAUGHT(13, 0)
    CHECK(dword ptr [ex_cs], LOW >> 4)
    CHECK(dword ptr [ex_eip], offset v_cli - low_code)
    /* A fault sets RF in its image. */
    CHECK(dword ptr [ex_flags], 0x30002)
    CHECK(dword ptr [ex_esp], 0x7000)

    /* INT n with IOPL 0 faults as well, INT3 goes through its gate. */
    TRY(caught_int)
    mov ebx, 0x20002
    mov ecx, offset v_int - low_code
    jmp enter
caught_int:
    CAUGHT(13, 0)
    mov dword ptr [idt + 3 * 8 + 4], 0x0010ee00
    mov edi, 3
    mov ebx, offset stubs + 3 * 16
    mov ecx, KCODE
    mov edx, 0xee00
    call gate
    TRY(caught_int3)
    mov ebx, 0x20002
    mov ecx, offset v_int3 - low_code
    jmp enter
caught_int3:
    CAUGHT(3, 0)
    CHECK(dword ptr [ex_eip], offset v_int3 - low_code + 1)

    /* With IOPL 3 all of it works: the program counts in BX and ends in INT 60h. */
    mov edi, 0x60
    mov ebx, offset stubs + 0x60 * 16
    mov ecx, KCODE
    mov edx, 0xee00
    call gate
    TRY(caught_60)
    mov ebx, 0x23002
    mov ecx, offset v_iopl3 - low_code
    jmp enter
caught_60:
    CAUGHT(0x60, 0)
    CHECK(word ptr [ex_eax], 0x3246)
    CHECK(word ptr [0x9000], 0x1234)
    /* The data segments were emptied on the way in, and are on the stack. */
    CHECK(dword ptr [ring0_top - 16], 0x11)
    CHECK(dword ptr [ring0_top - 12], 0x900)
    CHECK(dword ptr [ring0_top - 8], 0x33)
    CHECK(dword ptr [ring0_top - 4], 0x44)
    mov eax, fs
    CHECK(eax, 0)

    /* Ports: the bitmap decides, also with IOPL 3. */
    mov byte ptr [tss + 104], 0xfe
    TRY(caught_port)
    mov ebx, 0x23002
    mov ecx, offset v_port - low_code
    jmp enter
caught_port:
    CAUGHT(13, 0)
    CHECK(dword ptr [ex_eip], offset v_port2 - low_code)
    DONE("v86 ok\n")

/* To virtual-8086 mode: flags EBX, offset ECX. */
enter:
    push 0x44
    push 0x33
    push 0x900
    push 0x11
    push 0
    push 0x7000
    push ebx
    push LOW >> 4
    push ecx
    iretd

.align 16
low_code:
.code16
v_cli:
    cli
    hlt
v_int:
    int 0x60
    hlt
v_int3:
    int3
    hlt
v_iopl3:
    sti
    cli
    mov ax, 0x1234
    mov [0], ax
    mov ax, 0x7246
    push ax
    popf
    pushf
    pop ax
    and ax, 0xbfff
    int 0x60
    hlt
v_port:
    in al, 0
v_port2:
    in al, 1
    hlt
low_end:
.code32
