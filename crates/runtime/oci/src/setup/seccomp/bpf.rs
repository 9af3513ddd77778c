//! Compiles rules to classic BPF: a search tree over system call numbers for each architecture.
//!
//! A tree keeps both costs of a filter small: the kernel walks it once for every call that exists when it is installed,
//! and once for each call that is made. (A list of comparisons, as other generators make it, took the better part of a
//! container's start.)

use std::collections::BTreeMap;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};

use super::syscalls::Arch;

/// The kernel takes no longer program (`BPF_MAXINSNS`).
pub const MAX_LENGTH: usize = 4096;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// x86_64 calls from this number on are those of x32, which no filter here is written for.
const X32: u32 = 0x4000_0000;

/// What happens to a call: the value a filter returns (`SECCOMP_RET_…` with its data).
pub type Action = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument and this mask equal the value.
    Masked(u64),
}

/// About one argument of a call, all 64 bits of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8,
    pub compare: Compare,
    pub value: u64,
}

/// What happens to one call: the first alternative whose conditions all hold, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub alternatives: Vec<(Vec<Condition>, Action)>,
    pub otherwise: Action,
}

/// Verdicts by number for one architecture.
pub type Table = BTreeMap<u32, Verdict>;

/// The whole program; calls that no table has get `default`, architectures that have no table `foreign`.
pub fn program(tables: &[(Arch, Table)], default: Action, foreign: Action) -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE)];
    for (arch, table) in tables {
        let mut body = vec![load(NUMBER)];
        if *arch == Arch::X86_64 {
            body.push(jump(BPF_JGE, X32, 0, 1));
            body.push(ret(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
        }
        body.extend(tree(&ranges(table, default)));
        program.push(jump(BPF_JEQ, arch.audit(), 1, 0));
        program.push(skip(body.len()));
        program.extend(body);
    }
    program.push(ret(foreign));
    program
}

/// Neighbours with one verdict are one range; each begins where the one before ends.
fn ranges(table: &Table, default: Action) -> Vec<(u32, Verdict)> {
    let plain = || Verdict { alternatives: Vec::new(), otherwise: default };
    let mut ranges = vec![(0, plain())];
    let mut push = |start: u32, verdict: Verdict| match ranges.last_mut() {
        Some((_, last)) if *last == verdict => {}
        Some((begun, last)) if *begun == start => *last = verdict,
        _ => ranges.push((start, verdict)),
    };
    let mut next = 0;
    for (number, verdict) in table {
        if *number > next {
            push(next, plain());
        }
        push(*number, verdict.clone());
        next = number + 1;
    }
    push(next, plain());
    ranges
}

/// Finds the range of the number that is loaded. Every path through it returns.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let [only] = ranges else {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (pivot, low, high) = (high[0].0, tree(low), tree(high));
        let mut code = match u8::try_from(low.len()) {
            Ok(over) => vec![jump(BPF_JGE, pivot, over, 0)],
            Err(_) => vec![jump(BPF_JGE, pivot, 0, 1), skip(low.len())],
        };
        code.extend(low);
        code.extend(high);
        return code;
    };
    let mut code: Vec<sock_filter> =
        only.1.alternatives.iter().flat_map(|(conditions, action)| alternative(conditions, *action)).collect();
    code.push(ret(only.1.otherwise));
    code
}

/// Returns `action` if all conditions hold, else falls through.
fn alternative(conditions: &[Condition], action: Action) -> Vec<sock_filter> {
    conditions.iter().rev().fold(vec![ret(action)], |rest, condition| {
        // At most six conditions of six instructions: always in reach.
        let past = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let mut code = test(condition, past);
        code.extend(rest);
        code
    })
}

/// Goes on if the condition holds, else jumps over the `past` instructions that follow.
fn test(condition: &Condition, past: u8) -> Vec<sock_filter> {
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument) + if cfg!(target_endian = "big") { 4 } else { 0 };
    let high_at = low_at ^ 4;
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    // An ordering is decided by the upper half unless those are equal: two jumps on it, one on the lower half.
    let ordered = |low_test: u32, holds_above: bool, low_holds: bool| {
        let (above, below) = if holds_above { (3, past + 2) } else { (past + 3, 2) };
        let (yes, no) = if low_holds { (0, past) } else { (past, 0) };
        // Above: take `above`; equal: fall to the lower half; below: take `below`, counted from the second jump.
        vec![
            load(high_at),
            jump(BPF_JGT, high, above, 0),
            jump(BPF_JEQ, high, 0, below),
            load(low_at),
            jump(low_test, low, yes, no),
        ]
    };
    match condition.compare {
        Compare::Equal => {
            vec![load(high_at), jump(BPF_JEQ, high, 0, past + 2), load(low_at), jump(BPF_JEQ, low, 0, past)]
        }
        Compare::NotEqual => vec![load(high_at), jump(BPF_JEQ, high, 0, 2), load(low_at), jump(BPF_JEQ, low, past, 0)],
        Compare::Masked(mask) => vec![
            load(high_at),
            and((mask >> 32) as u32),
            jump(BPF_JEQ, high, 0, past + 3),
            load(low_at),
            and(mask as u32),
            jump(BPF_JEQ, low, 0, past),
        ],
        Compare::Greater => ordered(BPF_JGT, true, true),
        Compare::GreaterOrEqual => ordered(BPF_JGE, true, true),
        Compare::Less => ordered(BPF_JGE, false, false),
        Compare::LessOrEqual => ordered(BPF_JGT, false, false),
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn and(mask: u32) -> sock_filter {
    instruction(BPF_ALU | BPF_AND | BPF_K, mask, 0, 0)
}

fn jump(test: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(BPF_JMP | test | BPF_K, value, yes, no)
}

fn skip(count: usize) -> sock_filter {
    instruction(BPF_JMP | BPF_JA, u32::try_from(count).unwrap_or(u32::MAX), 0, 0)
}

fn ret(action: Action) -> sock_filter {
    instruction(BPF_RET | BPF_K, action, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a program says to a call, by the kernel's rules.
    pub fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => arch,
            _ => {
                let argument = arguments[((offset - ARGUMENTS) / 8) as usize];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let i = &program[at];
            at += 1;
            let test = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match u32::from(i.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => a = word(i.k),
                code if code == BPF_ALU | BPF_AND | BPF_K => a &= i.k,
                code if code == BPF_JMP | BPF_JA => at += i.k as usize,
                code if code == BPF_JMP | BPF_JEQ | BPF_K => at += test(a == i.k),
                code if code == BPF_JMP | BPF_JGT | BPF_K => at += test(a > i.k),
                code if code == BPF_JMP | BPF_JGE | BPF_K => at += test(a >= i.k),
                code if code == BPF_RET | BPF_K => return i.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn comparisons_see_all_64_bits() {
        let values = [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x5_0000_0005, 0x5_0000_0006, 0x6_0000_0000, u64::MAX];
        for compare in [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
            Compare::Masked(0xffff_0000_ffff),
        ] {
            for value in values {
                // A second condition and a second alternative: jumps must land right behind their own.
                let also = Condition { argument: 1, compare: Compare::Equal, value: 7 };
                let conditions = vec![Condition { argument: 0, compare, value }, also];
                let other = vec![Condition { argument: 2, compare: Compare::Equal, value: 9 }];
                let verdict = Verdict { alternatives: vec![(conditions, 1), (other, 2)], otherwise: 3 };
                let program = program(&[(Arch::X86_64, Table::from([(10, verdict)]))], 4, 5);
                for argument in values {
                    let holds = match compare {
                        Compare::Equal => argument == value,
                        Compare::NotEqual => argument != value,
                        Compare::Less => argument < value,
                        Compare::LessOrEqual => argument <= value,
                        Compare::Greater => argument > value,
                        Compare::GreaterOrEqual => argument >= value,
                        Compare::Masked(mask) => argument & mask == value,
                    };
                    let say = |second, third| run(&program, 0xc000_003e, 10, [argument, second, third, 0, 0, 0]);
                    assert_eq!(say(7, 0), if holds { 1 } else { 3 }, "{compare:?} {argument:#x} {value:#x}");
                    assert_eq!((say(8, 0), say(8, 9)), (3, 2));
                }
            }
        }
    }

    #[test]
    fn every_number_meets_its_own_verdict() {
        let plain = |action| Verdict { alternatives: Vec::new(), otherwise: action };
        let table: Table = (0..400).filter(|n| n % 3 != 0).map(|n| (n, plain(n % 7))).collect();
        let program = program(&[(Arch::X86, Table::new()), (Arch::X86_64, table)], 100, 101);
        assert!(program.len() < MAX_LENGTH);
        for number in 0..500 {
            let expected = if number < 400 && number % 3 != 0 { number % 7 } else { 100 };
            assert_eq!(run(&program, Arch::X86_64.audit(), number, [0; 6]), expected, "{number}");
        }
        assert_eq!(run(&program, Arch::X86.audit(), 1, [0; 6]), 100);
        assert_eq!(run(&program, Arch::Aarch64.audit(), 1, [0; 6]), 101);
        let x32 = run(&program, Arch::X86_64.audit(), X32 + 1, [0; 6]);
        assert_eq!(x32, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }
}
