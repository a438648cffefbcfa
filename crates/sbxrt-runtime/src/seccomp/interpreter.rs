//! Runs a filter as the kernel would (`net/core/filter.c`, `kernel/seccomp.c`): for the tests, and to tell what the
//! policy wanted done about a call that the kernel asks about.

use super::program::{Instruction, Program};

/// What a filter sees of a system call: `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: u32,
    /// Which instruction set it was made with (`linux/audit.h`).
    pub(crate) audit: u32,
    pub(crate) arguments: [u64; 6],
}

impl Call {
    /// What a load from this place gives; `None` where the kernel would not have taken the program.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.audit),
            16..64 if offset.is_multiple_of(4) => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                u32::try_from(argument >> shift & u64::from(u32::MAX)).ok()
            }
            _ => None,
        }
    }
}

/// The value that the filter returns, or `None` where it is none that the kernel would have taken. It ends, because
/// there are only jumps forward.
pub(crate) fn run(program: &Program, call: &Call) -> Option<u32> {
    let mut accumulator = 0;
    let mut counter = 0_usize;
    loop {
        let Instruction { code, jt, jf, k } = program.instruction(counter)?;
        counter += 1;
        let compare = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k)?,
            0x54 => accumulator &= k,
            0x05 => counter += k as usize,
            0x15 => counter += compare(accumulator == k),
            0x25 => counter += compare(accumulator > k),
            0x35 => counter += compare(accumulator >= k),
            0x45 => counter += compare(accumulator & k != 0),
            0x06 => return Some(k),
            _ => return None,
        }
    }
}
