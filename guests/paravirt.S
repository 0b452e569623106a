/* What a hypervisor of KVM's kind gives two processors, as far as CPUID tells of it: ends of interrupts in memory, whether
 * the other one runs, a TLB flush that waits for it, interrupts and the end of HLT by hypercalls. Says at the end what was
 * there.
 * expect: paravirt ok: eoi steal flush ipi unhalt
 *
 * Spec: KVM cpuid.rst, msr.rst, hypercalls.rst.
 */
#include "guest.inc"

#include "second.inc"

#define FEATURES 0x40000001
#define STEAL_TIME 5
#define PV_EOI 6
#define PV_UNHALT 7
#define TLB_FLUSH 9
#define SEND_IPI 11

#define MSR_STEAL_TIME 0x4b564d03
#define MSR_PV_EOI 0x4b564d04

#define EOI 0xfee000b0
#define SELF 0x40000

/* The second processor has small pages from here on. */
#define TEST 0x800000
#define OTHER 0x801000

#define HAS(bit, without) bt dword ptr [features], bit; jnc without
#define SAY(text) mov esi, offset 7f; call puts; jmp 6f; 7: .asciz text; .align 4; 6:
/* Has the second processor do step n, and waits until it has. */
#define STEP(n) add dword ptr [turn], 0x100; mov eax, [turn]; or al, n; mov [go], eax; \
    9: pause; cmp dword ptr [done], n; jne 9b
/* Waits until the second processor does not run. */
#define UNTIL_IT_SLEEPS 9: pause; test byte ptr [steal + 16], 1; jz 9b

main:
    /* The 8259s are not asked. */
    mov al, 0xff
    out 0x21, al
    out 0xa1, al

    mov eax, 0x40000000
    cpuid
    CHECK(ebx, 0x4b4d564b)
    mov eax, FEATURES
    cpuid
    mov [features], eax

    mov edi, 0x40
    mov ebx, offset handler40
    mov ecx, KCODE
    mov edx, 0x8e00
    call gate
    mov edi, 0x50
    mov ebx, offset handler50
    call gate
    call start_second
    mov esi, offset begins
    call puts

    HAS(PV_EOI, steal_time)
    mov ecx, MSR_PV_EOI
    mov eax, offset eoi + 3
    xor edx, edx
    TRY(1f)
    wrmsr
    FAIL(__LINE__)
1:  CAUGHT(13, 0)
    mov eax, offset eoi + 1
    wrmsr
    rdmsr
    CHECK(eax, offset eoi + 1)
    /* One after the other: each end is told in memory, and lets the next one in. */
    sti
    mov ecx, 1000
1:  mov dword ptr [ICR], SELF | 0x50
2:  pause
    mov eax, 1001
    sub eax, ecx
    cmp [taken], eax
    jne 2b
    mov dword ptr [ICR], SELF | 0x40
3:  pause
    cmp [taken_low], eax
    jne 3b
    loop 1b
    CHECK(dword ptr [told], 2000)
    /* Two at once: the first one has another behind it. */
    cli
    mov dword ptr [ICR], SELF | 0x40
    mov dword ptr [ICR], SELF | 0x50
    sti
1:  pause
    cmp dword ptr [taken_low], 1001
    jne 1b
    CHECK(dword ptr [told], 2001)
    CHECK(dword ptr [0xfee00100 + 0x20], 0)
    mov ecx, MSR_PV_EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    mov dword ptr [ICR], SELF | 0x40
1:  pause
    cmp dword ptr [taken_low], 1002
    jne 1b
    CHECK(dword ptr [told], 2001)
    cli
    SAY(" eoi")

steal_time:
    HAS(STEAL_TIME, ipis)
    STEP(1)
    STEP(2)
    UNTIL_IT_SLEEPS
    mov dword ptr [ICR_HIGH], 1 << 24
    mov dword ptr [ICR], 0x40
1:  pause
    cmp dword ptr [done], 3
    jne 1b
    SAY(" steal")

    HAS(TLB_FLUSH, ipis)
    mov dword ptr [TEST], 0x11111111
    mov dword ptr [OTHER], 0x22222222
    mov ecx, 20
flush:
    mov dword ptr [page_table], TEST | 0x3
    STEP(4)
    CHECK(dword ptr [seen], 0x11111111)
    UNTIL_IT_SLEEPS
    mov dword ptr [page_table], OTHER | 0x3
    mov al, 1
    mov bl, 3
    lock cmpxchg byte ptr [steal + 16], bl
    CHECK(al, 1)
    mov dword ptr [ICR_HIGH], 1 << 24
    mov dword ptr [ICR], 0x40
1:  pause
    cmp dword ptr [done], 5
    jne 1b
    CHECK(dword ptr [seen], 0x22222222)
    dec ecx
    jnz flush
    SAY(" flush")

ipis:
    HAS(SEND_IPI, unhalt)
    mov eax, 99
    vmcall
    CHECK(eax, -1000)
    /* To processors 1, 2 and 3 of which there is one, then to this one. */
    mov dword ptr [taken_low], 0
    STEP(6)
    mov eax, 10
    mov ebx, 0b11
    mov ecx, 0b1
    mov edx, 1
    mov esi, 0x40
    vmcall
    CHECK(eax, 1)
1:  pause
    cmp dword ptr [done], 7
    jne 1b
    CHECK(dword ptr [taken_low], 1)
    mov eax, 10
    mov edx, 0
    mov ebx, 1
    mov ecx, 0
    sti
    vmcall
    CHECK(eax, 1)
1:  pause
    cmp dword ptr [taken_low], 2
    jne 1b
    cli
    mov eax, 10
    mov esi, 0x40 | 0x80000
    vmcall
    CHECK(eax, -22)
    SAY(" ipi")

unhalt:
    HAS(PV_UNHALT, end)
    mov ecx, 100
1:  STEP(8)
    push ecx
    mov eax, 5
    xor ebx, ebx
    mov ecx, 1
    vmcall
    CHECK(eax, 0)
2:  pause
    cmp dword ptr [done], 9
    jne 2b
    pop ecx
    dec ecx
    jnz 1b
    SAY(" unhalt")

end:
    DONE("\n")

begins: .asciz "paravirt ok:"
.align 16

/* In compatibility mode, which every processor has. */
second:
    mov eax, 0x83
    xor ecx, ecx
1:  mov [directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 1b
    mov dword ptr [directories + (TEST >> 21) * 8], offset page_table + 3
    mov eax, offset directories + 3
    xor ecx, ecx
1:  mov [pointers + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jb 1b
    mov dword ptr [level4], offset pointers + 3
    mov eax, offset handler64
    mov word ptr [idt64 + 0x40 * 16], ax
    shr eax, 16
    mov dword ptr [idt64 + 0x40 * 16 + 2], CODE64
    mov word ptr [idt64 + 0x40 * 16 + 4], 0x8e00
    mov word ptr [idt64 + 0x40 * 16 + 6], ax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset level4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    lidt [idt64_pointer]
    xor ebp, ebp

#define DID(n) mov dword ptr [done], n
/* It does not run until an interrupt comes. */
#define SLEEP 9: sti; hlt; cli

next:
    pause
    mov eax, [go]
    cmp eax, ebp
    je next
    mov ebp, eax
    cmp al, 1
    je enable
    cmp al, 2
    je sleep
    cmp al, 4
    je look
    cmp al, 6
    je be_called
    cmp al, 8
    je halt
    jmp next

enable:
    mov ecx, MSR_STEAL_TIME
    xor edx, edx
    mov eax, offset steal + 1
    wrmsr
    CHECK(byte ptr [steal + 16], 0)
    DID(1)
    jmp next

sleep:
    DID(2)
    SLEEP
    CHECK(byte ptr [steal + 16], 0)
    DID(3)
    jmp next

look:
    invlpg [TEST]
    mov eax, [TEST]
    mov [seen], eax
    DID(4)
    SLEEP
    CHECK(byte ptr [steal + 16], 0)
    mov eax, [TEST]
    mov [seen], eax
    DID(5)
    jmp next

be_called:
    DID(6)
    SLEEP
    DID(7)
    jmp next

/* Interrupts are disabled: only another processor ends this. */
halt:
    DID(8)
    hlt
    DID(9)
    jmp next

/* Ends of interrupts as in Linux: told in memory where that was lent. The second processor is lent none. */
handler50:
    inc dword ptr [taken]
    jmp 1f
handler40:
    inc dword ptr [taken_low]
1:  btr dword ptr [eoi], 0
    jnc 2f
    inc dword ptr [told]
    iretd
2:  mov dword ptr [EOI], 0
    iretd

.code64
handler64:
    push rax
    inc dword ptr [taken_low]
    mov eax, EOI
    mov dword ptr [rax], 0
    pop rax
    iretq
.code32

.bss
.align 64
go: .skip 64
turn: .skip 64
done: .skip 64
seen: .skip 64
taken: .skip 64
taken_low: .skip 64
told: .skip 64
eoi: .skip 64
steal: .skip 64
features: .skip 64
.align 4096
level4: .skip 4096
pointers: .skip 4096
directories: .skip 4 * 4096
page_table: .skip 4096
idt64: .skip 4096
.data
idt64_pointer:
    .word 4095
    .long idt64, 0
.text
