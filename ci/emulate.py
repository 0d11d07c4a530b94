"""Runs an x86-64 Linux program, of one thread, on Bochs's CPU: it has AVX-512 on any machine.

    python3 emulate.py PROGRAM [ARGUMENT...]

The program runs as the kernel would: memory mapped to itself, one stack, a handful of system calls,
which reach this script by `wbinvd`, an instruction that no program has. What it is linked to is
loaded by its own interpreter (ld.so). `ci/emulate.sh` fetches Bochs's CPU (PyPI's
`bochscpu-python`) and calls this.
"""

import ctypes
import mmap
import os
import struct
import sys
import time

# Bochs's library asks for names of a newer C library than many machines have.
if "BN_EMULATOR_SHIM" in os.environ:
    ctypes.CDLL(os.environ["BN_EMULATOR_SHIM"], ctypes.RTLD_GLOBAL)
import bochscpu._bochscpu as bochs  # noqa: E402

PAGE = 4096
MEMORY = 1 << 30
STACK = 64 << 20
# Below the program: page tables, what `syscall` enters, segments.
TABLES, ENTRY, SEGMENTS = 0x1000, 0x9000, 0xA000
# Where what may be anywhere is loaded: the interpreter, and a program that has one.
INTERPRETER, PROGRAM = 0x40_0000, 0x100_0000

ENOENT, EBADF, EAGAIN, ENOMEM, EINVAL, ENOTTY, ENOSYS = 2, 9, 11, 12, 22, 25, 38
ARCH_SET_FS = 0x1002


def die(message):
    sys.stdout.flush()
    print(f"emulate: {message}", file=sys.stderr, flush=True)
    os._exit(99)  # Not by an exception: Bochs is on the stack.


class Machine:
    def __init__(self, arguments):
        self.memory = mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.files = set()
        entry, values, top = self.load(arguments[0])
        self.break_low = self.break_now = (top + 2 * PAGE) & -PAGE
        self.maps = MEMORY - STACK  # New mappings come below.
        self.tables()
        self.put(
            ENTRY,
            bytes.fromhex(
                "483d9e000000"  # cmp rax, 158 (arch_prctl)
                "750d"  #         jne +13
                "81ff02100000"  # cmp edi, ARCH_SET_FS
                "7505"  #         jne +5
                "f3480faed6"  #   wrfsbase rsi
                "0f09"  #         wbinvd: self.call
                "ffe1"  #         jmp rcx
            ),
        )
        self.put(SEGMENTS, struct.pack("<QQQ", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        stack = self.stack(arguments, values)
        self.status = None
        self.session = bochs.Session()
        self.session.missing_page_handler = self.page
        self.session.cpu.state = self.state(entry, stack)

    def put(self, at, data):
        self.memory[at : at + len(data)] = data

    def load(self, path):
        """Program and interpreter: where it starts, what the auxiliary values say, where the program ends."""
        entry, headers, top, interpreter = self.image(path, PROGRAM)
        values = {3: headers[0], 4: headers[1], 5: headers[2], 9: entry}
        if interpreter:
            entry, _, end, _ = self.image(interpreter, INTERPRETER)
            values[7] = INTERPRETER
            if end > PROGRAM:
                die(f"{interpreter} is too large")
        return entry, values, top

    def image(self, path, base):
        with open(path, "rb") as file:
            elf = file.read()
        kind, machine = struct.unpack_from("<HH", elf, 16)
        if elf[:5] != b"\x7fELF\x02" or kind not in (2, 3) or machine != 62:
            die(f"{path} is no x86-64 program")
        base = base if kind == 3 else 0
        entry, at = struct.unpack_from("<QQ", elf, 24)
        size, count = struct.unpack_from("<HH", elf, 54)
        address, top, interpreter = 0, 0, None
        for i in range(count):
            kind, _, offset, start, _, stored, length, _ = struct.unpack_from("<IIQQQQQQ", elf, at + i * size)
            start += base
            if kind == 3:
                interpreter = elf[offset : offset + stored].rstrip(b"\0").decode()
            if kind != 1:
                continue
            if start <= SEGMENTS or start + length > MEMORY - 2 * STACK:
                die(f"{path}: {length} bytes at {start:#x} are outside of the memory")
            self.put(start, elf[offset : offset + stored])
            if offset <= at < offset + stored:
                address = start + at - offset
            top = max(top, start + length)
        return base + entry, (address, size, count), top, interpreter

    def tables(self):
        """Every address means itself, in pages of 2 MB."""
        self.put(TABLES, struct.pack("<Q", TABLES + PAGE | 3))
        for gigabyte in range(MEMORY >> 30):
            directory = TABLES + (2 + gigabyte) * PAGE
            self.put(TABLES + PAGE + 8 * gigabyte, struct.pack("<Q", directory | 3))
            pages = [(gigabyte << 30) + (k << 21) | 0x83 for k in range(512)]
            self.put(directory, struct.pack("<512Q", *pages))

    def stack(self, arguments, values):
        """Arguments, environment and auxiliary values, as the System V ABI has them."""
        top = MEMORY - PAGE

        def text(data):
            nonlocal top
            top -= len(data) + 1
            self.put(top, data + b"\0")
            return top

        argv = [text(a.encode()) for a in arguments]
        envp = [text(b"RUST_BACKTRACE=0")]
        seed, platform = text(bytes(range(16))), text(b"x86_64")
        values = {**values, 6: PAGE, 11: 0, 12: 0, 13: 0, 14: 0, 15: platform, 17: 100, 23: 0, 25: seed}
        words = [len(argv), *argv, 0, *envp, 0]
        for pair in values.items():
            words += pair
        words += [0, 0]
        words += [0] * (len(words) % 2)
        top = (top & -64) - 8 * len(words)
        self.put(top, struct.pack(f"<{len(words)}Q", *words))
        return top

    def state(self, entry, stack):
        """64-bit mode, privileged, floating point as Linux has it, all of AVX-512 enabled."""

        def segment(selector, attributes):
            s = bochs.Segment()
            s.present, s.selector, s.base, s.limit, s.attr = True, selector, 0, 0xFFFFFFFF, attributes
            return s

        def table(base, limit):
            t = bochs.GlobalSegment()
            t.base, t.limit = base, limit
            return t

        s = bochs.State()
        s.cs = segment(8, 0xA09B)
        for name in ("ds", "es", "ss", "fs", "gs"):
            setattr(s, name, segment(16, 0xC093))
        s.gdtr, s.idtr = table(SEGMENTS, 23), table(0, 0)
        s.cr0, s.cr3, s.efer = 0x80050033, TABLES, 0x501
        s.cr4 = 0x00050620  # PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
        s.xcr0 = 0xE7
        s.lstar, s.star, s.sfmask = ENTRY, 8 << 32 | 8 << 48, 0
        s.mxcsr, s.mxcsr_mask, s.fpcw, s.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        s.rflags, s.rip, s.rsp = 2, entry, stack
        return s

    def page(self, address):
        address &= -PAGE
        if address >= MEMORY:
            die(f"no memory at {address:#x}, rip {self.session.cpu.rip:#x}")
        bochs.memory.page_insert(address, self.host + address)

    def call(self, session, _cpu, _what):
        cpu = session.cpu
        answer = self.answer(cpu.rax, cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9)
        cpu.rax = answer & (1 << 64) - 1
        if self.status is not None:
            session.stop()

    def answer(self, number, a, b, c, d, e, f):
        match number:
            case 1:  # write
                return self.write(a, self.memory[b : b + c])
            case 20:  # writev
                parts = (struct.unpack_from("<QQ", self.memory, b + 16 * i) for i in range(c))
                return self.write(a, b"".join(self.memory[at : at + size] for at, size in parts))
            case 60 | 231:  # exit, exit_group
                self.status = a & 255
                return 0
            case 12:  # brk
                if self.break_low <= a <= self.break_low + STACK:
                    self.break_now = a
                return self.break_now
            case 9:  # mmap: fresh memory, or a copy of a file
                size = (b + PAGE - 1) & -PAGE
                if not d & mmap.MAP_ANONYMOUS and e not in self.files:
                    return -EBADF
                if d & 16:  # MAP_FIXED
                    if a < self.maps or a + size > MEMORY - STACK:
                        return -ENOMEM
                    at = a
                elif size > self.maps - self.break_low - STACK:
                    return -ENOMEM
                else:
                    self.maps -= size
                    at = self.maps
                data = b"" if d & mmap.MAP_ANONYMOUS else os.pread(e, size, f)
                if data or d & 16:
                    self.put(at, data + bytes(size - len(data)))
                return at
            case 11:  # munmap: the newest is given back
                size = (b + PAGE - 1) & -PAGE
                if a == self.maps:
                    self.memory[a : a + size] = bytes(size)
                    self.maps += size
                return 0
            case 228:  # clock_gettime
                self.put(b, struct.pack("<QQ", *divmod(time.monotonic_ns(), 10**9)))
                return 0
            case 318:  # getrandom: the same each time
                self.put(a, bytes(i * 97 & 255 for i in range(b)))
                return b
            case 204:  # sched_getaffinity: one CPU
                self.put(c, struct.pack("<Q", 1))
                return 8
            case 39 | 186:  # getpid, gettid
                return 1
            case 257:  # openat: libraries, which are read; nothing of this process
                path = self.memory[b : self.memory.find(b"\0", b)].decode()
                if c & 3 or not path.startswith("/") or path.startswith(("/proc", "/sys", "/dev")):
                    return -ENOENT
                try:
                    file = os.open(path, os.O_RDONLY)
                except OSError as error:
                    return -error.errno
                self.files.add(file)
                return file
            case 0 | 3 | 5 | 17 if a not in self.files:
                return -EBADF
            case 0 | 17:  # read, pread64
                data = os.read(a, c) if number == 0 else os.pread(a, c, d)
                self.put(b, data)
                return len(data)
            case 3:  # close
                self.files.remove(a)
                os.close(a)
                return 0
            case 5:
                return self.stat(a, b)
            case 262 if a in self.files and self.memory[b] == 0:  # newfstatat of an open file
                return self.stat(a, c)
            case 2 | 21 | 89 | 262:  # open, access, readlink, newfstatat: there are no other files
                return -ENOENT
            case 158:  # arch_prctl: what it sets is set
                return 0 if a == ARCH_SET_FS else -EINVAL
            case 16:  # ioctl
                return -ENOTTY
            case 56 | 435:  # clone, clone3: no threads now; tests then run in the first one
                return -EAGAIN
            case 202:  # futex: nobody to wake, and nobody who would wake
                if b & 127 in (1, 10):
                    return 0
                die("the only thread waits for another")
            # poll, mprotect, rt_sigaction, rt_sigprocmask, sigaltstack, set_tid_address, set_robust_list
            case 7 | 10 | 13 | 14 | 131 | 218 | 273:
                return 0
            case _:
                return -ENOSYS

    def stat(self, file, at):
        s = os.fstat(file)
        first = struct.pack("<QQQIIIIQqqq", s.st_dev, s.st_ino, s.st_nlink, s.st_mode, 0, 0, 0, 0, s.st_size, PAGE, s.st_blocks)
        self.put(at, first + bytes(144 - len(first)))
        return 0

    def write(self, file, data):
        if file not in (1, 2):
            return -EBADF
        to = (sys.stdout if file == 1 else sys.stderr).buffer
        to.write(data)
        return len(data)

    def exception(self, session, _cpu, vector, code):
        cpu = session.cpu
        die(f"exception {vector}, code {code}, rip {cpu.rip:#x}, cr2 {cpu.cr2:#x}")

    def run(self):
        hook = bochs.Hook()
        hook.cache_cntrl = self.call
        hook.exception = self.exception
        self.session.run([hook])
        if self.status is None:
            die(f"stopped before its end, rip {self.session.cpu.rip:#x}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    Machine(sys.argv[1:]).run()
