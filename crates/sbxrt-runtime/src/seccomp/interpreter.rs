//! Runs a filter as the kernel's verifier and interpreter would (`net/core/filter.c`, `kernel/seccomp.c`).

use super::program::Program;

/// What a filter sees of a system call: `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) audit: u32,
    pub(super) arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        assert_eq!(
            offset % 4,
            0,
            "the kernel refuses loads that are not aligned"
        );
        match offset {
            0 => self.number,
            4 => self.audit,
            16..64 => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                u32::try_from(argument >> shift & u64::from(u32::MAX)).unwrap()
            }
            _ => panic!("load from {offset}"),
        }
    }
}

/// The value that the filter returns.
pub(super) fn run(program: &Program, call: &Call) -> u32 {
    let instructions: Vec<_> = program.instructions().collect();
    let mut accumulator = 0;
    let mut counter = 0;
    loop {
        let instruction = instructions[counter];
        counter += 1;
        let compare = |holds: bool| {
            usize::from(if holds {
                instruction.jt
            } else {
                instruction.jf
            })
        };
        match instruction.code {
            0x20 => accumulator = call.word(instruction.k),
            0x54 => accumulator &= instruction.k,
            0x05 => counter += instruction.k as usize,
            0x15 => counter += compare(accumulator == instruction.k),
            0x25 => counter += compare(accumulator > instruction.k),
            0x35 => counter += compare(accumulator >= instruction.k),
            0x45 => counter += compare(accumulator & instruction.k != 0),
            0x06 => return instruction.k,
            code => panic!("operation {code:#x}"),
        }
    }
}
