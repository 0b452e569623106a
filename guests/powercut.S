/* Writes patterns to the first IDE disk without end, flushes after every eighth write, and tells on COM1 what is flushed:
 * "seed" and a number when it begins, "flushed" and a write's number after each flush, in eight hexadecimal digits. It is for
 * machines that are killed meanwhile: whoever runs it works out from the seed what was written where.
 *
 * Write n is of 1 to 8 sectors: x = x * 1664525 + 1013904223, from LBA (x >> 8 & FFFh) * 32 + (x >> 20 & 7) on, as many as
 * (x >> 24 & 7) + 1. Each sector begins with n and its LBA; the other 126 words go on from n + LBA * 65599 as x does.
 * A drive that reports an error, or none, ends the machine with FFFFFFFFh or the error's bits.
 */
#include "guest.inc"

#define DATA 0x1f0
#define BUFFER 0x200000

main:
    rdtsc
    mov ebp, eax
    mov esi, offset seed
    call puts
    mov eax, ebp
    call number
    xor edi, edi
write:
    inc edi
    imul ebp, ebp, 1664525
    add ebp, 1013904223
    mov ebx, ebp
    shr ebx, 8
    and ebx, 0xfff
    shl ebx, 5
    mov eax, ebp
    shr eax, 20
    and eax, 7
    add ebx, eax
    mov ecx, ebp
    shr ecx, 24
    and ecx, 7
    inc ecx
    call ready
    mov edx, DATA + 2
    mov al, cl
    out dx, al
    inc edx
    mov al, bl
    out dx, al
    inc edx
    mov al, bh
    out dx, al
    inc edx
    mov eax, ebx
    shr eax, 16
    out dx, al
    inc edx
    mov al, 0xe0
    out dx, al
    inc edx
    mov al, 0x30
    out dx, al
sector:
    call ready
    test al, 8
    jz broken
    call fill
    push ecx
    mov esi, BUFFER
    mov ecx, 128
    mov edx, DATA
    rep outsd
    pop ecx
    inc ebx
    dec ecx
    jnz sector
    call ready
    test edi, 7
    jnz write
    mov edx, DATA + 7
    mov al, 0xe7
    out dx, al
    call ready
    mov esi, offset flushed
    call puts
    mov eax, edi
    call number
    jmp write

/* The sector EBX of write EDI. */
fill:
    mov dword ptr [BUFFER], edi
    mov dword ptr [BUFFER + 4], ebx
    imul eax, ebx, 65599
    add eax, edi
    mov edx, 8
1:  imul eax, eax, 1664525
    add eax, 1013904223
    mov [BUFFER + edx], eax
    add edx, 4
    cmp edx, 512
    jb 1b
    ret

/* Waits until the drive is, and returns its status in AL. */
ready:
    mov edx, DATA + 7
1:  in al, dx
    test al, 0x80
    jnz 1b
    test al, 0x21
    jnz 2f
    test al, al
    jz broken
    ret
2:  mov edx, DATA + 1
    in al, dx
    movzx eax, al
    out EXIT, eax
3:  hlt
    jmp 3b
broken:
    mov eax, -1
    out EXIT, eax
    jmp 3b

/* Prints EAX and the end of the line. */
number:
    push edi
    push ebx
    mov ebx, eax
    mov edi, 8
    mov edx, COM1
1:  rol ebx, 4
    mov eax, ebx
    and eax, 15
    movzx eax, byte ptr [digits + eax]
    out dx, al
    dec edi
    jnz 1b
    mov al, 10
    out dx, al
    pop ebx
    pop edi
    ret

.data
seed: .asciz "seed "
flushed: .asciz "flushed "
digits: .ascii "0123456789abcdef"
