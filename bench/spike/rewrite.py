#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns compiler output (gcc -S -masm=intel) into what a translator would emit for it.

usage: rewrite.py VARIANT in.s... > out.s       VARIANT = regs-form-layout-log2entries-stack

regs    A  rsp host stack, gs vCPU, r15 TLB base, r13 r14 scratch, guest r12-r15 in slots
        B2 rsp vCPU frame, gs TLB, r13 r14 scratch, guest r12-r14 in slots
        B3 rsp vCPU frame, gs TLB, r13 r14 r15 scratch, guest r12-r15 in slots
        C  rsp vCPU frame that also holds the TLB, r13 r14 scratch, guest r12-r14 in slots
        D  rsp vCPU frame, r15 TLB base, r13 r14 scratch, guest r12-r15 in slots
form    X  xor with the tag, compare with 4096-n: tag and page crossing in one compare; addend
        P  X with the index taken by pext from a mask in the frame
        S  X with a 20-bit index by shrx; the TLB base is 12 modulo 32 (regs D, layout s8-20)
        Z  X that checks the page of the base register for small displacements (no lea)
        Q  X with the index by bextr, controlled by the low 16 bits of the TLB base (regs D, s8)
        Y  Z and Q together
        H  the same, but the array holds the host page: no register keeps the address
        T  "lea": page of the last byte compared with the tag
        E  exact: no crossing test (a lower bound: wrong where a crossing is possible)
        N  no check at all: only the registers are renamed
layout  s8 split arrays, i16 {tag, addend} per direction, i32 {rtag, wtag, xtag, addend}
stack   naive: every access; once: one TLB check per block; cache: one compare per block
        with the cached translation of the stack page
Guest rsp lives in host r12 in all of them. Guest addresses equal host addresses, so a rewritten
program still runs as an ordinary process; the TLB is real and its misses walk a real radix tree.
"""
import re
import sys

SIZES = {'BYTE': 1, 'WORD': 2, 'DWORD': 4, 'QWORD': 8, 'XMMWORD': 16, 'TBYTE': 10, 'OWORD': 16}
NAMES = {}
for i, r in enumerate(['ax', 'cx', 'dx', 'bx', 'sp', 'bp', 'si', 'di']):
    NAMES['r' + r], NAMES['e' + r], NAMES[r] = (i, 8), (i, 4), (i, 2)
    NAMES[(r[0] + 'l') if r[1] == 'x' else r + 'l'] = (i, 1)
for i in range(8, 16):
    for suffix, size in (('', 8), ('d', 4), ('w', 2), ('b', 1)):
        NAMES[f'r{i}{suffix}'] = (i, size)
HIGH = {'ah': 0, 'ch': 1, 'dh': 2, 'bh': 3}


def name(number, size):
    if number >= 8:
        return f'r{number}' + {8: '', 4: 'd', 2: 'w', 1: 'b'}[size]
    base = ['ax', 'cx', 'dx', 'bx', 'sp', 'bp', 'si', 'di'][number]
    return {8: 'r' + base, 4: 'e' + base, 2: base,
            1: base[0] + 'l' if base[1] == 'x' else base + 'l'}[size]


class Variant:
    def __init__(self, text):
        self.text = text
        self.regs, self.form, self.layout, bits, self.stack = text.split('-')
        self.bits = int(bits)
        self.pext, self.shrx = self.form == 'P', self.form == 'S'
        self.near, self.bextr = self.form in 'ZY', self.form in 'QY'
        self.bias = 12 if self.shrx else 12 + 256 * self.bits if self.bextr else 0
        self.form = 'X' if self.form in 'PSZQY' else self.form
        self.slots = {'A': (12, 13, 14, 15), 'B3': (12, 13, 14, 15), 'D': (12, 13, 14, 15),
                      'B2': (12, 13, 14), 'C': (12, 13, 14), 'N': ()}[self.regs]
        self.three = self.regs == 'B3'
        n = 1 << self.bits
        skew = 64 * 5
        self.base_offset = 4096 if self.regs == 'C' else 0
        first = self.base_offset + 65536 + 4096
        if self.layout == 's8':
            self.scale, self.stride = 8, 8
            self.rtag, self.wtag = first, first + 8 * n + skew
            self.radd = self.wadd = first + 2 * (8 * n + skew)
            self.size = 65536 + 4096 + 3 * (8 * n + skew)
        elif self.layout == 'i16':
            self.scale, self.stride = 1, 16
            self.rtag, self.radd = first, first + 8
            self.wtag, self.wadd = first + 16 * n + skew, first + 16 * n + skew + 8
            self.size = 65536 + 4096 + 2 * (16 * n + skew)
        else:
            self.scale, self.stride = 1, 32
            self.rtag, self.wtag = first, first + 8
            self.radd = self.wadd = first + 24
            self.size = 65536 + 4096 + 32 * n

    def slot(self, number, size=8):
        word = {8: 'QWORD', 4: 'DWORD', 2: 'WORD', 1: 'BYTE'}[size]
        return f'{word} PTR ' + self.frame(8 * (number - 12) if number >= 12 else number)

    def frame(self, offset):
        return f'gs:[{offset}]' if self.regs == 'A' else f'[rsp+{offset}]'

    def tlb(self, offset, index='', scale=1):
        """Operand of the TLB instance: base + index * scale + offset."""
        x = f'{index}*{scale}+' if index else ''
        offset -= self.bias
        return {'A': f'[r15+{x}{offset}]', 'D': f'[r15+{x}{offset}]', 'B2': f'gs:[{x}{offset}]',
                'B3': f'gs:[{x}{offset}]', 'C': f'[rsp+{x}{offset}]'}[self.regs]


SAVE_RAX, STACK_PAGE, STACK_ADD, HOST_RSP, TARGET, SPARE, INDEX_MASK, VIEWS = \
    0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x60
S0, S1, S2 = 'r13', 'r14', 'r15'

READS_FIRST = {'cmp', 'test', 'push', 'bt', 'ucomisd', 'comisd', 'ucomiss', 'comiss', 'mul', 'div',
               'idiv', 'ptest'}
WRITES_FIRST = {'mov', 'movzx', 'movsx', 'movsxd', 'lea', 'pop', 'movabs', 'cvttsd2si', 'movd',
                'movq', 'pmovmskb', 'movmskpd', 'movmskps', 'pextrw', 'bsf', 'bsr', 'tzcnt',
                'cvttss2si', 'cvtsd2si'}
KEEPS_FLAGS = {'mov', 'movzx', 'movsx', 'movsxd', 'lea', 'pop', 'push', 'movabs', 'not', 'bswap',
               'cdq', 'cdqe', 'cqo', 'cwde', 'xchg', 'nop', 'leave', 'stosq', 'movsq', 'stosb'}
KILLS = {'add', 'sub', 'and', 'or', 'xor', 'cmp', 'test', 'neg', 'imul', 'mul', 'div', 'idiv',
         'sal', 'shl', 'shr', 'sar', 'shld', 'shrd', 'adc', 'sbb', 'bsf', 'bsr', 'tzcnt', 'popcnt',
         'ucomisd', 'comisd', 'ucomiss', 'comiss', 'xadd', 'cmpxchg', 'bt', 'bts', 'btr', 'btc'}
READS_FLAGS = re.compile(r'^(j(?!mp)|set|cmov|adc|sbb|rcl|rcr|lahf|pushf)')


class Operand:
    """reg (number, size) | mem (base, index, scale, disp text, size) | imm"""

    def __init__(self, text):
        self.text, self.kind = text.strip(), 'imm'
        t = self.text
        if t.startswith('[') and ' PTR ' in t:      # call [QWORD PTR 8[rax]]
            t = self.text = t[1:-1]
        if t in NAMES:
            self.kind, (self.reg, self.size) = 'reg', NAMES[t]
            return
        if t in HIGH:
            self.kind, self.reg, self.size = 'high', HIGH[t], 1
            return
        if re.match(r'^(xmm\d+|st(\(\d\))?)$', t):
            self.kind = 'xmm'
            return
        m = re.match(r'^(?:(\w+) PTR )?(.*)\[(.*)\]$', t)
        if not m:
            return
        self.kind, self.size = 'mem', SIZES.get(m.group(1), 0)
        self.disp, self.base, self.index, self.scale, self.rip = m.group(2), None, None, 1, False
        for term in re.split(r'\+', m.group(3).replace('-', '+-')):
            if term == 'rip':
                self.rip = True
            elif '*' in term:
                r, s = term.split('*')
                self.index, self.scale = NAMES[r][0], int(s)
            elif term in NAMES and self.base is None:
                self.base = NAMES[term][0]
            elif term in NAMES:
                self.index = NAMES[term][0]
            elif term:
                self.disp += ('+' if self.disp and not term.startswith('-') else '') + term
        if self.rip and self.disp.startswith('+'):
            self.disp = self.disp[1:]

    def uses(self, number):
        return self.kind == 'mem' and number in (self.base, self.index)


class Line:
    def __init__(self, text):
        self.text = text
        body = text.strip()
        self.label = self.op = None
        self.args = []
        self.prefix = ''
        m = re.match(r'^([.\w$]+):$', body)
        if m:
            self.label = m.group(1)
        elif text.startswith('\t') and not body.startswith('.') and not body.startswith('#'):
            parts = body.split(None, 1)
            if parts[0] in ('rep', 'lock', 'notrack', 'repz', 'repnz') and len(parts) > 1:
                self.prefix = parts[0] + ' '
                parts = parts[1].split(None, 1)
            self.op = parts[0].rstrip()
            if len(parts) > 1:
                self.args = [Operand(a) for a in split_args(parts[1])]


def split_args(text):
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == '[') - (c == ']')
        if c == ',' and depth == 0:
            out.append(text[start:i])
            start = i + 1
    return out + [text[start:]]


def flags_live_before(lines):
    """For each line: are the flags live before it?  Backward over the whole file to a fixpoint."""
    at_label = {}
    live = [False] * (len(lines) + 1)
    while True:
        changed = False
        now = False
        for i in range(len(lines) - 1, -1, -1):
            x = lines[i]
            if x.label:
                if at_label.get(x.label, False) != now:
                    at_label[x.label] = now
                    changed = True
            elif x.op:
                if x.op in ('ret', 'call') or (x.op == 'jmp' and x.args[0].kind != 'imm'):
                    now = False
                elif x.op == 'jmp':
                    now = at_label.get(x.args[0].text, False)
                elif READS_FLAGS.match(x.op):
                    now = True
                elif x.op in KILLS:
                    now = False
            live[i] = now
        if not changed:
            return live


class Rewriter:
    def __init__(self, variant, defined):
        self.v, self.defined = variant, defined
        self.out, self.cold = [], []
        self.n = 0
        self.stats = dict(sites=0, stack=0, live=0, instructions=0, blocks=0, slot_uses=0)
        self.block = None

    def emit(self, text):
        self.out.append('\t' + text)

    def fresh(self):
        self.n += 1
        return f'.Lq{self.n}'

    def host(self, number):
        """Host register of a guest register, or None when it lives in a slot."""
        if number is None or number in self.v.slots:
            return None
        return 'r12' if number == 4 else name(number, 8)

    def is_slot(self, number):
        return number in self.v.slots

    # ---- addresses
    def address(self, m, index=True):
        """(base, rest-of-address text) when the address needs no scratch register, else None."""
        if any(r is not None and self.is_slot(r) for r in (m.base, m.index)):
            return None
        terms = []
        if m.rip:
            terms.append('rip')
        if m.base is not None:
            terms.append(self.host(m.base))
        if m.index is not None:
            terms.append(f'{self.host(m.index)}*{m.scale}')
        return terms

    def compose(self, m, extra=0, to=S0, spare=S1):
        """Put the guest address of m into `to`; may use `spare` when spare is not None."""
        disp = m.disp or '0'
        if extra:
            disp += f'+{extra}'
        terms = self.address(m)
        if terms is not None:
            self.emit(f'lea {to}, {disp}[{"+".join(terms)}]')
            return
        base, index = m.base, m.index
        slot_base = base is not None and self.is_slot(base)
        slot_index = index is not None and self.is_slot(index)
        if slot_base and slot_index:
            if spare:
                self.emit(f'mov {to}, {self.v.slot(base)}')
                self.emit(f'mov {spare}, {self.v.slot(index)}')
                self.emit(f'lea {to}, {disp}[{to}+{spare}*{m.scale}]')
            else:
                self.emit(f'mov {to}, {self.v.slot(index)}')
                self.emit(f'lea {to}, {disp}[0+{to}*{m.scale}]')
                self.emit(f'add {to}, {self.v.slot(base)}')
        elif slot_base:
            self.emit(f'mov {to}, {self.v.slot(base)}')
            tail = f'+{self.host(index)}*{m.scale}' if index is not None else ''
            if tail or disp != '0':
                self.emit(f'lea {to}, {disp}[{to}{tail}]')
        else:
            self.emit(f'mov {to}, {self.v.slot(index)}')
            head = f'{self.host(base)}+' if base is not None else '0+'
            self.emit(f'lea {to}, {disp}[{head}{to}*{m.scale}]')

    def plain(self, m):
        """base register name when the address is base + constant and the base is in a register"""
        if m.rip or m.index is not None or m.base is None or self.is_slot(m.base):
            return None
        return self.host(m.base)

    def index_of(self, source):
        """S1 = TLB index of the page of `source` (flags may change)."""
        v = self.v
        if v.pext:
            self.emit(f'pext {S1}, {source}, QWORD PTR {v.frame(INDEX_MASK)}')
            return
        if v.bextr:     # r15 is 12 + 256 * bits modulo 65536
            self.emit(f'bextr {S1}, {source}, r15')
            return
        if v.shrx:      # r15 is 12 modulo 32
            self.emit(f'shrx {S1}d, {name(NAMES[source][0], 4)}, r15d')
            return
        shift = 12 - {1: {16: 4, 32: 5}.get(v.stride, 0), 8: 0}[v.scale]
        self.emit(f'rorx {S1}, {source}, {shift}')
        if v.scale == 8 and v.bits == 16:
            self.emit(f'movzx {S1}d, {S1}w')
        else:
            mask = ((1 << v.bits) - 1) * (1 if v.scale == 8 else v.stride)
            self.emit(f'and {S1}d, {mask}')

    def again(self, m, live, spare):
        """The address once more; rax holds saved flags when they are live."""
        rax = live and m.uses(0)
        if rax:
            self.emit(f'mov QWORD PTR {self.v.frame(SPARE)}, rax')
            self.emit(f'mov rax, QWORD PTR {self.v.frame(SAVE_RAX)}')
        self.compose(m, spare=spare)
        if rax:
            self.emit(f'mov rax, QWORD PTR {self.v.frame(SPARE)}')

    def miss(self, m, size, write, done, live):
        """The cold path of one site: address again, walk and fill, go on with addend 0 or page."""
        label = self.fresh()
        hot, self.out = self.out, []
        self.again(m, live, S1)
        self.emit(f'mov {S1}d, {size}')
        self.emit(f'call tlb_miss_{"w" if write else "r"}')
        self.emit(f'jmp {done}')
        self.cold += [f'{label}:'] + self.out
        self.out = hot
        return label

    def check(self, m, size, write, need_free, live):
        """Emit the check; return (address text of the host location, free scratch or None)."""
        v = self.v
        self.stats['sites'] += 1
        if v.form == 'N':
            terms = self.address(m)
            if terms is not None:
                return f'{m.disp}[{"+".join(terms)}]', S0
            self.compose(m)
            return f'[{S0}]', S1
        tag, add = (v.wtag, v.wadd) if write else (v.rtag, v.radd)
        tagged = v.tlb(tag, S1, v.scale)
        added = v.tlb(add, S1, v.scale)
        done = self.fresh()
        plain = self.plain(m)
        still_s0 = False        # S0 keeps the address after the compare
        if live:
            self.stats['live'] += 1
            self.compose(m)
            self.emit(f'mov QWORD PTR {v.frame(SAVE_RAX)}, rax')
            self.emit('lahf')
            self.emit('seto al')
            plain = None
        elif not (plain and (m.disp in ('', '0') or self.is_near(plain, m)) and v.form in 'XH' and
                  not v.three):
            self.compose(m)
        source = S0
        if not live and self.is_near(plain, m):
            return self.near_check(m, size, write, plain, done)
        missed = self.miss(m, size, write, done, live)
        if v.form in 'XH':
            if not live and plain and m.disp in ('', '0') and not v.three:
                self.index_of(plain)
                self.emit(f'mov {S0}, {tagged}')
                self.emit(f'xor {S0}, {plain}')
                x = S0
            elif v.three and v.form == 'X':
                self.index_of(S0)
                self.emit(f'mov {S2}, {tagged}')
                self.emit(f'xor {S2}, {S0}')
                x, still_s0 = S2, True
            else:
                self.index_of(S0)
                self.emit(f'xor {S0}, {tagged}')
                x = S0
            self.emit(f'cmp {x}, {4096 - size}')
            self.emit(f'ja {missed}')
        elif v.form == 'T':
            self.index_of(source)
            if v.three:
                t, still_s0 = S2, True
            else:
                t = S0
            if size > 1:
                self.emit(f'lea {t}, [{S0}+{size - 1}]')
            elif t != S0:
                self.emit(f'mov {t}, {S0}')
            self.emit(f'and {t}, -4096')
            self.emit(f'cmp {t}, {tagged}')
            self.emit(f'jne {missed}')
        else:   # exact: the tag is the page number
            t = S0
            if v.three:
                t, still_s0 = S2, True
                self.emit(f'mov {t}, {S0}')
            if v.scale == 8:
                self.emit(f'shr {t}, 12')
                if v.bits == 16:
                    self.emit(f'movzx {S1}d, {t}w')
                else:
                    self.emit(f'mov {S1}d, {t}d')
                    self.emit(f'and {S1}d, {(1 << v.bits) - 1}')
            else:
                self.index_of(S0)
                self.emit(f'shr {t}, 12')
            self.emit(f'cmp {t}, {tagged}')
            self.emit(f'jne {missed}')

        def restore():
            if live:
                self.emit('add al, 127')
                self.emit('sahf')
                self.emit(f'mov rax, QWORD PTR {v.frame(SAVE_RAX)}')
        if v.form == 'H':
            self.emit(f'add {S0}, {added}')
            self.out.append(f'{done}:')
            restore()
            return f'[{S0}]', S1
        if live:
            if not still_s0:
                if v.form == 'X':
                    self.emit(f'xor {S0}, {tagged}')
                else:
                    self.again(m, live, None)
            self.emit(f'add {S0}, {added}')
            self.out.append(f'{done}:')
            restore()
            return f'[{S0}]', S1
        if plain:
            self.emit(f'mov {S1}, {added}')
            self.out.append(f'{done}:')
            return f'{m.disp}[{plain}+{S1}]', S0
        if not still_s0:
            self.compose(m, spare=None)
            if need_free:
                self.emit(f'add {S0}, {added}')
                self.out.append(f'{done}:')
                return f'[{S0}]', S1
        self.emit(f'mov {S1}, {added}')
        self.out.append(f'{done}:')
        return f'[{S0}+{S1}]', S2 if still_s0 else None

    def is_near(self, plain, m):
        return self.v.near and plain and re.match(r'^\d+$', m.disp) and 0 < int(m.disp) <= 64

    def near_check(self, m, size, write, plain, done):
        """The page of the base register is checked; leaving it upwards goes to the full check."""
        v = self.v
        tagged = v.tlb(v.wtag if write else v.rtag, S1, v.scale)
        added = v.tlb(v.wadd if write else v.radd, S1, v.scale)
        full = self.fresh()
        self.index_of(plain)
        self.emit(f'mov {S0}, {tagged}')
        self.emit(f'xor {S0}, {plain}')
        self.emit(f'cmp {S0}, {4096 - size - int(m.disp)}')
        self.emit(f'ja {full}')
        self.emit(f'mov {S1}, {added}')
        self.out.append(f'{done}:')
        missed = self.miss(m, size, write, done, False)
        hot, self.out = self.out, []
        self.compose(m)
        self.index_of(S0)
        self.emit(f'xor {S0}, {tagged}')
        self.emit(f'cmp {S0}, {4096 - size}')
        self.emit(f'ja {missed}')
        self.emit(f'mov {S1}, {added}')
        self.emit(f'jmp {done}')
        self.cold += [f'{full}:'] + self.out
        self.out = hot
        return f'{m.disp}[{plain}+{S1}]', S0

    # ---- stack accesses covered by a check at the block's head
    def stack_access(self, m, size, write, need_free, live):
        if self.block and m.base == 4 and m.index is None and not m.rip and \
                re.match(r'^-?\d*$', m.disp) and id(self.current) in self.block:
            self.emit(f'mov {S1}, QWORD PTR {self.v.frame(STACK_ADD)}')
            return f'{m.disp}[r12+{S1}]', S0
        return self.check(m, size, write, need_free, live)

    def block_check(self, low, high):
        """One check for all rsp-relative accesses of a block, rsp+low .. rsp+high."""
        v = self.v
        self.stats['stack'] += 1
        m = Operand(f'QWORD PTR {low}[rsp]')
        done, label = self.fresh(), self.fresh()
        self.emit(f'lea {S0}, {low}[r12]')
        self.cold += [f'{label}:', f'\tlea {S0}, {low}[r12]', f'\tmov {S1}d, {high - low}',
                      '\tcall stack_miss', f'\tjmp {done}']
        if v.stack == 'cache':
            self.emit(f'xor {S0}, QWORD PTR {v.frame(STACK_PAGE)}')
        else:
            self.index_of(S0)
            self.emit(f'xor {S0}, {v.tlb(v.wtag, S1, v.scale)}')
        self.emit(f'cmp {S0}, {max(4096 - (high - low), 0)}')
        self.emit(f'ja {label}')
        if v.stack == 'once':
            self.emit(f'mov {S0}, {v.tlb(v.wadd, S1, v.scale)}')
            self.emit(f'mov QWORD PTR {v.frame(STACK_ADD)}, {S0}')
        self.out.append(f'{done}:')
        return m

    # ---- one guest instruction
    def instruction(self, x, live_before, live_after):
        self.current = x
        self.stats['instructions'] += 1
        op, args = x.op, x.args
        # flags matter at the check when the instruction itself reads them or leaves them alone
        # while a later one reads them: that is exactly "live before".
        live = live_before
        if op == 'ret':
            m = Operand('QWORD PTR [rsp]')
            where, free = self.stack_access(m, 8, False, True, False)
            self.emit(f'mov {S0}, QWORD PTR {where}')
            self.emit('lea r12, [r12+8]')
            self.indirect()
        elif op == 'call' and args[0].text.startswith('view_'):
            self.switch_view(int(args[0].text[5]))
        elif op in ('call', 'jmp') and args[0].kind == 'imm':
            target = args[0].text
            plain = target.replace('@PLT', '')
            if op == 'jmp':
                if plain in self.defined or plain.startswith('.L'):
                    self.emit(f'jmp {plain}')
                else:       # tail call to a library function
                    self.emit(f'call {target}')
                    self.instruction(Line('\tret'), False, False)
            elif plain in self.defined:
                back = self.fresh()
                self.push_text(back, live=False)
                self.emit(f'jmp {plain}')
                self.out.append(f'{back}:')
            else:
                self.emit(f'call {target}')
        elif op in ('call', 'jmp'):
            if args[0].kind == 'mem':
                self.emit_load(args[0])     # target to S0
            elif self.is_slot(args[0].reg):
                self.emit(f'mov {S0}, {self.v.slot(args[0].reg)}')
            else:
                self.emit(f'mov {S0}, {self.host(args[0].reg)}')
            if op == 'call':
                back = self.fresh()
                self.emit(f'mov QWORD PTR {self.v.frame(TARGET)}, {S0}')
                self.push_text(back, live=False)
                self.emit(f'mov {S0}, QWORD PTR {self.v.frame(TARGET)}')
                self.indirect()
                self.out.append(f'{back}:')
            else:
                self.indirect()
        elif op == 'push':
            self.push(args[0], live)
        elif op == 'pop':
            m = Operand('QWORD PTR [rsp]')
            where, free = self.stack_access(m, 8, False, True, live)
            r = args[0].reg
            if self.is_slot(r):
                free = free or S0
                self.emit(f'mov {free}, QWORD PTR {where}')
                self.emit(f'mov {self.v.slot(r)}, {free}')
            else:
                self.emit(f'mov {self.host(r)}, QWORD PTR {where}')
            self.emit('lea r12, [r12+8]')
        elif op == 'leave':
            self.emit('mov r12, rbp')
            self.instruction(Line('\tpop\trbp'), live, live)
        elif op.startswith('prefetch'):
            pass
        else:
            self.general(x, live)

    def switch_view(self, number):
        """The guest changed privilege, AC or CR3: another TLB instance is in force."""
        v = self.v
        where = f'QWORD PTR {v.frame(VIEWS + 8 * number)}'
        if v.regs in ('A', 'D'):
            self.emit(f'mov r15, {where}')
        elif v.regs == 'C':     # the frame moves: three slots go along
            self.emit(f'mov {S0}, {where}')
            for k in (0, 8, 16):
                self.emit(f'mov {S1}, QWORD PTR [rsp+{k}]')
                self.emit(f'mov QWORD PTR [{S0}+{k}], {S1}')
            self.emit(f'mov rsp, {S0}')
        else:
            self.emit(f'mov {S0}, {where}')
            self.emit(f'wrgsbase {S0}')

    def emit_load(self, m):
        where, free = self.stack_access(m, 8, False, True, False)
        self.emit(f'mov {S0}, QWORD PTR {where}')

    def indirect(self):
        """Jump to the guest address in S0 through the hashed branch cache."""
        b = self.v.base_offset
        self.emit(f'mov {S1}d, {S0}d')
        self.emit(f'and {S1}d, 4095')
        self.emit(f'shl {S1}d, 4')
        self.emit(f'cmp {S0}, {self.v.tlb(b, S1)}')
        self.emit('jne branch_miss')
        self.emit(f'jmp QWORD PTR {self.v.tlb(b + 8, S1)}')

    def push_text(self, label, live):
        m = Operand('QWORD PTR -8[rsp]')
        where, free = self.stack_access(m, 8, True, True, live)
        free = free or S0
        self.emit(f'lea {free}, {label}[rip]')
        self.emit(f'mov QWORD PTR {where}, {free}')
        self.emit('lea r12, [r12-8]')

    def push(self, a, live):
        m = Operand('QWORD PTR -8[rsp]')
        if a.kind == 'mem':
            where, free = self.stack_access(a, 8, False, True, live)
            self.emit(f'mov {S0}, QWORD PTR {where}')
            self.emit(f'mov QWORD PTR {self.v.frame(TARGET)}, {S0}')
            where, free = self.stack_access(m, 8, True, True, live)
            self.emit(f'mov {free}, QWORD PTR {self.v.frame(TARGET)}')
            self.emit(f'mov QWORD PTR {where}, {free}')
        elif a.kind == 'imm':
            where, free = self.stack_access(m, 8, True, False, live)
            self.emit(f'mov QWORD PTR {where}, {a.text}')
        else:
            where, free = self.stack_access(m, 8, True, self.is_slot(a.reg), live)
            if self.is_slot(a.reg):
                self.emit(f'mov {free}, {self.v.slot(a.reg)}')
                self.emit(f'mov QWORD PTR {where}, {free}')
            else:
                self.emit(f'mov QWORD PTR {where}, {self.host(a.reg)}')
        self.emit('lea r12, [r12-8]')

    def text_of(self, a):
        if a.kind == 'reg':
            return 'r12' + name(12, a.size)[3:] if a.reg == 4 else name(a.reg, a.size)
        return a.text

    def general(self, x, live):
        op, args, v = x.op, x.args, self.v
        if op == 'lea':
            return self.lea(x)
        if ' ds:' in x.text:        # gcc's rendering of a null dereference it has proved
            return self.emit('ud2')
        if not args:
            self.out.append('\t' + x.prefix + x.op)
            return
        mem = next((a for a in args if a.kind == 'mem'), None)
        slots = [a for a in args if a.kind == 'reg' and self.is_slot(a.reg)]
        self.stats['slot_uses'] += len(slots)
        first = args[0]
        reads_first = not (op in WRITES_FIRST and not (first.kind == 'reg' and first.size < 4))
        if len(args) == 3 and op == 'imul':
            reads_first = False
        writes_first = op not in READS_FIRST
        if len(args) == 1 and op == 'imul':
            writes_first = False
        texts = [self.text_of(a) for a in args]
        if mem is None:
            self.no_memory(x, texts, slots, reads_first, writes_first)
            return
        size = mem.size or self.guess(op, args)
        write = (first is mem and writes_first) or op == 'xchg'
        high = [a for a in args if a.kind == 'high']
        where, free = self.stack_access(mem, size, write, bool(slots or high), live)
        word = mem.text.split(' PTR ')[0] + ' PTR ' if ' PTR ' in mem.text else ''
        texts[args.index(mem)] = word + where
        if high:            # ah cannot be named beside r13
            self.emit(f'mov {free}, {name(high[0].reg, 8)}')
            self.emit(f'rorx {free}, {free}, 8')
            texts[args.index(high[0])] = name(NAMES[free][0], 1)
        if slots:
            a = slots[0]
            i = args.index(a)
            r = NAMES[free][0]
            texts[i] = name(r, a.size)
            is_first = a is first
            if not is_first or reads_first or op == 'xchg':
                self.emit(f'mov {free}, {v.slot(a.reg)}')
            self.emit(f'{x.prefix}{op} {", ".join(texts)}')
            if (is_first and writes_first) or op in ('xchg', 'xadd'):
                self.emit(f'mov {v.slot(a.reg)}, {free}')
        else:
            self.emit(f'{x.prefix}{op} {", ".join(texts)}')

    def no_memory(self, x, texts, slots, reads_first, writes_first):
        op, args, v = x.op, x.args, self.v
        emit = self.emit
        if not slots:
            emit(f'{x.prefix}{op} {", ".join(texts)}')
            return
        first = args[0]
        if len(slots) == 1 and not x.prefix:
            a = slots[0]
            i = args.index(a)
            if op == 'test' and i == 0 and args[1].kind != 'imm':
                i, a = 0, first
            in_place = False
            if a is not first:
                in_place = len(args) == 2 and (op in (
                    'mov', 'add', 'sub', 'and', 'or', 'xor', 'cmp', 'adc', 'sbb', 'imul', 'movzx',
                    'movsx', 'movsxd', 'test', 'cvtsi2sd', 'cvtsi2ss', 'bsr', 'bsf', 'movd', 'movq')
                    or op.startswith('cmov')) and first.kind != 'high'
            elif op in ('cmp', 'test'):
                in_place = True
            elif a.size == 8 and op in ('mov', 'add', 'sub', 'and', 'or', 'xor', 'adc', 'sbb', 'inc',
                                        'dec', 'neg', 'not', 'shl', 'sal', 'shr', 'sar', 'rol',
                                        'ror'):
                in_place = True
            elif a.size < 4 and (op.startswith('set') or op in ('mov', 'add', 'sub', 'and', 'or',
                                                                'xor')):
                in_place = True
            elif len(args) == 1 and op in ('mul', 'div', 'idiv', 'imul'):
                in_place = True
            if op == 'mov' and a is first and args[1].kind == 'imm' and a.size == 8 and \
                    not re.match(r'^-?\d{1,9}$', args[1].text):
                in_place = False
            if in_place:
                texts[i] = v.slot(a.reg, a.size)
                emit(f'{op} {", ".join(texts)}')
                return
        used = {}
        free = [S0, S1]
        for i, a in enumerate(args):
            if not (a.kind == 'reg' and self.is_slot(a.reg)):
                continue
            if a.reg not in used:
                used[a.reg] = free.pop(0)
                zeroing = op in ('xor', 'sub') and len(args) == 2 and first.kind == 'reg' and \
                    first.size >= 4 and args[1].kind == 'reg' and first.reg == args[1].reg
                only_written = i == 0 and not reads_first and \
                    not any(b is not a and b.kind == 'reg' and b.reg == a.reg for b in args)
                if not zeroing and not only_written:
                    emit(f'mov {used[a.reg]}, {v.slot(a.reg)}')
            texts[i] = name(NAMES[used[a.reg]][0], a.size)
        emit(f'{x.prefix}{op} {", ".join(texts)}')
        if first.kind == 'reg' and self.is_slot(first.reg) and writes_first:
            emit(f'mov {v.slot(first.reg)}, {used[first.reg]}')
        if op in ('xchg', 'xadd') and args[1].kind == 'reg' and self.is_slot(args[1].reg):
            emit(f'mov {v.slot(args[1].reg)}, {used[args[1].reg]}')

    def lea(self, x):
        dst, m = x.args
        terms = self.address(m)
        to = S0 if self.is_slot(dst.reg) else ('r12' if dst.reg == 4 else name(dst.reg, 8))
        if terms is not None:
            short = name(NAMES[to][0], dst.size)
            self.emit(f'lea {short}, {m.disp or 0}[{"+".join(terms) if terms else ""}]')
        else:
            self.compose(m)
            if to != S0 or dst.size == 4:
                short = name(NAMES[to][0], dst.size)
                self.emit(f'mov {short}, {name(13, dst.size)}')
        if self.is_slot(dst.reg):
            self.emit(f'mov {self.v.slot(dst.reg)}, {S0}')

    @staticmethod
    def guess(op, args):
        if op in ('movlps', 'movhps', 'movlpd', 'movhpd', 'movsd', 'movq', 'cvtsi2sd', 'addsd'):
            return 8
        if op in ('movss', 'movd'):
            return 4
        if any(a.kind == 'xmm' for a in args):
            return 16
        return next((a.size for a in args if a.kind == 'reg'), 8)

    # ---- blocks: which stack accesses can share one check
    def plan_block(self, lines, start):
        """(low, high, ids) of rsp-relative accesses from line `start` to the end of its block."""
        at, low, high, ids = 0, None, None, set()
        covered = 0
        for i in range(start, len(lines)):
            x = lines[i]
            if x.label and i > start:
                break
            if not x.op:
                continue
            touch = []
            delta = 0
            if x.op == 'push':
                touch.append((at - 8, 8))
                delta = -8
                if x.args[0].kind == 'mem':
                    break
            elif x.op == 'pop':
                touch.append((at, 8))
                delta = 8
            elif x.op == 'ret':
                touch.append((at, 8))
            elif x.op == 'call':
                if x.args[0].kind == 'mem' or x.args[0].text.replace('@PLT', '') in self.defined \
                        or x.args[0].kind == 'reg':
                    touch.append((at - 8, 8))
            elif x.op in ('add', 'sub') and x.args[0].kind == 'reg' and x.args[0].reg == 4:
                if x.args[1].kind != 'imm':
                    break
                value = int(x.args[1].text, 0)
                delta = value if x.op == 'add' else -value
            elif x.args and x.args[0].kind == 'reg' and x.args[0].reg == 4 and \
                    x.op not in ('cmp', 'test'):
                break
            elif x.op == 'leave':
                break
            if x.op not in ('push', 'pop', 'ret', 'lea'):
                for a in x.args:
                    if a.kind == 'mem' and a.base == 4 and a.index is None and \
                            re.match(r'^-?\d*$', a.disp):
                        touch.append((at + int(a.disp or 0), a.size or 16))
            if x.op == 'call' and x.args[0].kind == 'mem' and len(touch) > 1:
                break
            if touch:
                l = min(t[0] for t in touch)
                h = max(t[0] + t[1] for t in touch)
                nl = l if low is None else min(l, low)
                nh = h if high is None else max(h, high)
                if nh - nl > 2048:
                    break
                low, high = nl, nh
                ids.add(id(x))
                covered += len(touch)
            at += delta
            if x.op.startswith('j') or x.op in ('ret', 'call'):
                break
        return (low, high, ids, covered)

    def run(self, lines):
        live = flags_live_before(lines)
        fresh_block = True
        for i, x in enumerate(lines):
            if x.label:
                self.out.append(x.text)
                fresh_block = True
                continue
            if not x.op:
                self.out.append(x.text)
                continue
            if fresh_block:
                fresh_block = False
                self.stats['blocks'] += 1
                self.block = None
                if self.v.stack in ('once', 'cache') and self.v.form != 'N':
                    low, high, ids, covered = self.plan_block(lines, i)
                    enough = 1 if self.v.stack == 'cache' else 2
                    if covered >= enough and not live[i]:
                        self.block_check(low, high)
                        self.block = ids
            self.instruction(x, live[i], live[i + 1])
            if x.op.startswith('j') or x.op in ('ret', 'call'):
                fresh_block = True
        return self.out + ['\t.text 1'] + self.cold + ['\t.text 0']


def runtime(v):
    mask = ((1 << min(v.bits, 16)) - 1) << 12
    pushes = ['rax', 'rcx', 'rdx', 'rsi', 'rdi', 'r8', 'r9', 'r10', 'r11']
    save = '\n'.join(f'\tpush {r}' for r in pushes)
    load = '\n'.join(f'\tpop {r}' for r in reversed(pushes))
    b = v.base_offset
    if v.regs == 'A':
        enter = 'mov r11, vcpu_area[rip]\n\twrgsbase r11\n\tmov r15, tlb_area[rip]'
        leave = ''
        stack_cache = '\tmov gs:[0x28], rax\n\tmov QWORD PTR gs:[0x30], 0'
    else:
        base = {'C': '', 'D': f'mov r15, tlb_area[rip]\n\tadd r15, {v.bias}'}.get(
            v.regs, 'mov r10, tlb_area[rip]\n\twrgsbase r10')
        enter = f'mov r11, vcpu_area[rip]\n\tmov [r11+0x38], rsp\n\tmov QWORD PTR [r11+0x50], {mask}\n\t{base}\n\tmov rsp, r11'
        leave = 'mov rsp, [rsp+0x38]'
        # after nine pushes and a return address the frame is 80 bytes above
        stack_cache = '\tmov [rsp+80+0x28], rax\n\tmov QWORD PTR [rsp+80+0x30], 0'
    instance = {'A': 'mov rdx, r15', 'D': f'lea rdx, [r15-{v.bias}]',
                'C': 'lea rdx, [rsp+80]'}.get(v.regs, 'rdgsbase rdx')
    constants = ''.join(f'\t.globl {k}\n{k}:\t.quad {n}\n' for k, n in (
        ('lay_rtag', v.rtag - b), ('lay_wtag', v.wtag - b), ('lay_radd', v.radd - b),
        ('lay_wadd', v.wadd - b), ('lay_stride', v.stride), ('lay_bits', v.bits),
        ('lay_size', v.size), ('lay_joined', 1 if v.regs == 'C' else 0),
        ('lay_bias', v.bias), ('lay_form', ord(v.form))))
    return f'''
	.text
	.globl run_guest
run_guest:
	push rbx
	push rbp
	push r12
	push r13
	push r14
	push r15
	sub rsp, 8
	mov rax, rdi
	mov rdi, rsi
	mov r12, guest_stack_top[rip]
	{enter}
	lea r13, guest_exit[rip]
	sub r12, 8
	mov [r12], r13
	jmp rax
guest_exit:
	{leave}
	add rsp, 8
	pop r15
	pop r14
	pop r13
	pop r12
	pop rbp
	pop rbx
	ret
tlb_miss_r:
{save}
	mov rdi, r13
	mov esi, r14d
	{instance}
	call fill_read
	mov r14, rax
{load}
	add r13, r14
	ret
tlb_miss_w:
{save}
	mov rdi, r13
	mov esi, r14d
	{instance}
	call fill_write
	mov r14, rax
{load}
	add r13, r14
	ret
stack_miss:
{save}
	mov rdi, r13
	mov esi, r14d
	{instance}
	call fill_write
	mov rax, r13
	and rax, -4096
{stack_cache}
{load}
	ret
branch_miss:
	mov {v.tlb(b, S1)}, r13
	mov {v.tlb(b + 8, S1)}, r13
	jmp r13
	.section .rodata
{constants}
	.section .note.GNU-stack,"",@progbits
'''


def main():
    v = Variant(sys.argv[1])
    texts = [open(f).read().split('\n') for f in sys.argv[2:]]
    out = ['\t.intel_syntax noprefix']
    stats = {}
    for number, text in enumerate(texts):
        lines = [Line(t) for t in text]
        defined = {x.label for x in lines if x.label}
        r = Rewriter(v, defined)
        r.n = number * 10000000
        body = r.run(lines)
        # keep the local labels of several files apart
        body = [re.sub(r'\.L(?!q)(\w+)', rf'.L{number}_\1', t) if '.L' in t else t for t in body]
        out += [t for t in body if not re.match(r'\s*\.(file|ident|intel_syntax)|.*note\.GNU', t)]
        for k, n in r.stats.items():
            stats[k] = stats.get(k, 0) + n
    print('\n'.join(out))
    print(runtime(v))
    print(v.text, stats, file=sys.stderr)


if __name__ == '__main__':
    main()
