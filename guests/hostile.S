/* A driver that breaks the rules of virtio. It finds the devices that have memory-mapped registers and gives each queue of
 * each of them rings that cannot be: addresses without memory, loops, tables in tables, indexes out of range, then noise.
 * A device must ask for a reset where it has to look at such a ring, obey the reset, work again as if nothing had been, and
 * have written nowhere else.
 * expect: hostile ok
 *
 * Spec: virtio 1.2 §2.1.1, §2.7, §4.2.
 */
#include "guest.inc"

/* As the board places them. */
#define DEVICES 0xd0000000
#define STRIDE 0x1000
#define COUNT 32

#define DESC 0x400000
#define AVAIL 0x401000
#define USED 0x402000
#define SCRATCH 0x500000
#define SCRATCH_MASK 0xfffff
#define CANARY 0x601000
#define CANARY_END 0x700000
#define SIZE 8

/* Flags of a descriptor. */
#define NEXT 1
#define WRITE 2
#define INDIRECT 4

/* Registers, by EBX. */
#define MAGIC [ebx]
#define TYPE [ebx + 0x08]
#define FEATURES_SEL [ebx + 0x24]
#define FEATURES [ebx + 0x20]
#define QUEUE [ebx + 0x30]
#define QUEUE_MAX [ebx + 0x34]
#define QUEUE_SIZE [ebx + 0x38]
#define READY [ebx + 0x44]
#define NOTIFY [ebx + 0x50]
#define STATUS [ebx + 0x70]
#define NEEDS_RESET 0x40

#define DESCRIPTOR(n, high, low, length, flags, next) \
    mov dword ptr [DESC + n * 16], low; mov dword ptr [DESC + n * 16 + 4], high; \
    mov dword ptr [DESC + n * 16 + 8], length; mov dword ptr [DESC + n * 16 + 12], (flags) | (next) << 16
#define AVAILABLE(index, head) mov word ptr [AVAIL + 2], index; mov word ptr [AVAIL + 4], head

main:
    mov edi, CANARY
1:  mov [edi], edi
    add edi, 4
    cmp edi, CANARY_END
    jb 1b

    mov ebx, DEVICES
device:
    cmp dword ptr MAGIC, 0x74726976
    jne next_device
    cmp dword ptr TYPE, 0
    je next_device
    inc dword ptr [found]
    mov dword ptr [queue], 0
next_queue:
    mov eax, [queue]
    mov QUEUE, eax
    cmp dword ptr QUEUE_MAX, 0
    je sane
    call is_busy
    mov [busy], eax
    mov esi, offset attacks
attack:
    call set_up
    push esi
    call [esi]
    pop esi
    mov eax, [queue]
    mov NOTIFY, eax
    mov ecx, 1000
1:  mov eax, STATUS
    test eax, NEEDS_RESET
    jnz 2f
    dec ecx
    jnz 1b
    /* Queues that the device fills when it has something it need not look at now. */
    cmp dword ptr [busy], 0
    je 2f
    mov eax, esi
    sub eax, offset attacks
    add eax, 20000
    out EXIT, eax
2:  add esi, 4
    cmp esi, offset attacks_end
    jb attack

    /* A queue that lies where no memory is. */
    call begin
    mov dword ptr [ebx + 0x80], DESC
    mov dword ptr [ebx + 0x84], 1
    mov dword ptr READY, 1
    mov eax, STATUS
    and eax, NEEDS_RESET
    CHECK(eax, NEEDS_RESET)
    /* Misaligned. */
    call begin
    mov dword ptr [ebx + 0x80], DESC + 8
    mov dword ptr READY, 1
    mov eax, STATUS
    and eax, NEEDS_RESET
    CHECK(eax, NEEDS_RESET)

    /* Noise would tell a balloon to take any page, which it may. */
    mov eax, TYPE
    shl eax, 8
    or eax, [queue]
    cmp eax, 0x500
    je 2f
    mov ebp, 250
1:  call noise
    dec ebp
    jnz 1b
2:  inc dword ptr [queue]
    jmp next_queue

    /* An entropy source is asked for entropy. */
sane:
    mov dword ptr STATUS, 0
    CHECK(dword ptr STATUS, 0)
    cmp dword ptr TYPE, 4
    jne next_device
    mov dword ptr [queue], 0
    call set_up
    DESCRIPTOR(0, 0, SCRATCH, 64, WRITE, 0)
    AVAILABLE(1, 0)
    mov dword ptr NOTIFY, 0
1:  mov eax, STATUS
    CHECK(eax, 15)
    cmp word ptr [USED + 2], 1
    jne 1b
    CHECK(dword ptr [USED + 8], 64)
    inc dword ptr [worked]
    mov dword ptr STATUS, 0

next_device:
    add ebx, STRIDE
    cmp ebx, DEVICES + COUNT * STRIDE
    jb device

    mov edi, CANARY
1:  CHECK(edi, [edi])
    add edi, 4
    cmp edi, CANARY_END
    jb 1b
    CHECK(dword ptr [worked], 1)
    cmp dword ptr [found], 12
    jae 1f
    FAIL(__LINE__)
1:  DONE("hostile ok\n")

/* EAX: whether the device looks at [queue] whenever it is told to. */
is_busy:
    mov eax, TYPE
    shl eax, 8
    or eax, [queue]
    mov esi, offset busy_queues
1:  cmp [esi], eax
    je 2f
    add esi, 4
    cmp esi, offset busy_queues_end
    jb 1b
    xor eax, eax
    ret
2:  mov eax, 1
    ret

/* Resets the device, agrees upon indirect tables, and says where [queue] is. */
begin:
    mov edi, DESC
    mov ecx, (USED + 0x1000 - DESC) / 4
    xor eax, eax
    rep stosd
    mov dword ptr STATUS, 0
    CHECK(dword ptr STATUS, 0)
    mov dword ptr STATUS, 1
    mov dword ptr STATUS, 3
    mov dword ptr FEATURES_SEL, 0
    mov dword ptr FEATURES, 1 << 28
    mov dword ptr FEATURES_SEL, 1
    mov dword ptr FEATURES, 1
    mov dword ptr STATUS, 11
    CHECK(dword ptr STATUS, 11)
    mov eax, [queue]
    mov QUEUE, eax
    mov dword ptr QUEUE_SIZE, SIZE
    mov dword ptr [ebx + 0x80], DESC
    mov dword ptr [ebx + 0x84], 0
    mov dword ptr [ebx + 0x90], AVAIL
    mov dword ptr [ebx + 0x94], 0
    mov dword ptr [ebx + 0xa0], USED
    mov dword ptr [ebx + 0xa4], 0
    ret

set_up:
    call begin
    mov dword ptr READY, 1
    mov dword ptr STATUS, 15
    CHECK(dword ptr STATUS, 15)
    ret

attacks:
    .long beyond, top, endless, registers, itself, ring, out_of_table, head, no_head, ahead, order
    .long nested, empty, odd, far_table, and_more, huge_table, far_next
attacks_end:

beyond:
    DESCRIPTOR(0, 0x100, 0, 64, 0, 0)
    AVAILABLE(1, 0)
    ret
top:
    DESCRIPTOR(0, -1, 0xfffff000, -1, WRITE, 0)
    AVAILABLE(1, 0)
    ret
endless:
    DESCRIPTOR(0, 0, SCRATCH, -1, WRITE, 0)
    AVAILABLE(1, 0)
    ret
registers:
    DESCRIPTOR(0, 0, DEVICES, 64, WRITE, 0)
    AVAILABLE(1, 0)
    ret
itself:
    DESCRIPTOR(0, 0, SCRATCH, 16, NEXT, 0)
    AVAILABLE(1, 0)
    ret
ring:
    DESCRIPTOR(0, 0, SCRATCH, 16, NEXT, 1)
    DESCRIPTOR(1, 0, SCRATCH, 0, NEXT, 0)
    AVAILABLE(1, 0)
    ret
out_of_table:
    DESCRIPTOR(0, 0, SCRATCH, 16, NEXT, 0xffff)
    AVAILABLE(1, 0)
    ret
head:
    AVAILABLE(1, SIZE)
    ret
no_head:
    AVAILABLE(1, -1)
    ret
ahead:
    DESCRIPTOR(0, 0, SCRATCH, 16, WRITE, 0)
    AVAILABLE(0x8000, 0)
    ret
order:
    DESCRIPTOR(0, 0, SCRATCH, 16, WRITE | NEXT, 1)
    DESCRIPTOR(1, 0, SCRATCH, 16, 0, 0)
    AVAILABLE(1, 0)
    ret
nested:
    DESCRIPTOR(0, 0, DESC, 16, INDIRECT, 0)
    AVAILABLE(1, 0)
    ret
empty:
    DESCRIPTOR(0, 0, SCRATCH, 0, INDIRECT, 0)
    AVAILABLE(1, 0)
    ret
odd:
    DESCRIPTOR(0, 0, SCRATCH, 24, INDIRECT, 0)
    AVAILABLE(1, 0)
    ret
far_table:
    DESCRIPTOR(0, 0x100, 0, 32, INDIRECT, 0)
    AVAILABLE(1, 0)
    ret
and_more:
    DESCRIPTOR(0, 0, DESC + 32, 16, INDIRECT | NEXT, 1)
    DESCRIPTOR(1, 0, SCRATCH, 16, 0, 0)
    DESCRIPTOR(2, 0, SCRATCH, 16, 0, 0)
    AVAILABLE(1, 0)
    ret
huge_table:
    DESCRIPTOR(0, 0, SCRATCH, 0xfffffff0, INDIRECT, 0)
    AVAILABLE(1, 0)
    ret
far_next:
    DESCRIPTOR(0, 0, DESC + 32, 16, INDIRECT, 0)
    DESCRIPTOR(2, 0, SCRATCH, 16, NEXT, 3)
    AVAILABLE(1, 0)
    ret

/* EAX: a number of xorshift32. */
random:
    mov eax, [seed]
    mov edx, eax
    shl edx, 13
    xor eax, edx
    mov edx, eax
    shr edx, 17
    xor eax, edx
    mov edx, eax
    shl edx, 5
    xor eax, edx
    mov [seed], eax
    ret

/* Descriptors of noise. Those that point to memory point to SCRATCH, since a device may write there. */
noise:
    mov eax, STATUS
    cmp eax, 15
    je 1f
    call set_up
1:  mov edi, DESC
    call descriptors
    call random
    and eax, SCRATCH_MASK & ~15
    lea edi, [SCRATCH + eax]
    call descriptors
    mov edi, AVAIL + 4
    mov ecx, SIZE
2:  call random
    and eax, SIZE - 1
    stosw
    dec ecx
    jnz 2b
    call random
    and eax, SIZE - 1
    add [AVAIL + 2], ax
    mov eax, [queue]
    mov NOTIFY, eax
    ret

/* SIZE of them at EDI. */
descriptors:
    mov ecx, SIZE
1:  call random
    mov esi, eax
    call random
    and eax, SCRATCH_MASK
    add eax, SCRATCH
    xor edx, edx
    test esi, 0x700
    jnz 2f
    or eax, 0x80000000
    mov edx, esi
    shl edx, 20
2:  mov [edi], eax
    mov [edi + 4], edx
    call random
    and eax, 0xfff
    test esi, 0x7000
    jnz 3f
    or eax, 0x40000000
3:  mov [edi + 8], eax
    mov eax, esi
    shr eax, 16
    and eax, (SIZE - 1) << 16 | 7
    mov [edi + 12], eax
    call random
    and eax, SIZE - 1
    mov [edi + 14], ax
    add edi, 16
    dec ecx
    jnz 1b
    ret

.data
.align 4
found: .long 0
worked: .long 0
queue: .long 0
busy: .long 0
seed: .long 0x9e3779b9
/* Type and queue. */
busy_queues:
    .long 0x101, 0x200, 0x301, 0x400, 0x500, 0x802, 0x900, 0x1201, 0x1301, 0x1a01
busy_queues_end:
