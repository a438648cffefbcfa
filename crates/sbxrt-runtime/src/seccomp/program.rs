//! A classic BPF program, as the kernel takes it for a seccomp filter (`linux/filter.h`).

use super::profile::Error;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The largest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction: the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if the comparison holds.
    pub jt: u8,
    /// How many instructions to skip if it does not.
    pub jf: u8,
    /// The constant.
    pub k: u32,
}

impl Instruction {
    /// The size of an instruction in memory.
    pub const SIZE: usize = 8;

    /// Whether a filter that gets here ends the process or traps.
    fn ends(self) -> bool {
        const RETURN: u16 = 0x06;
        // KILL_THREAD, TRAP, KILL_PROCESS
        self.code == RETURN && matches!(self.k & 0xffff_0000, 0 | 0x0003_0000 | 0x8000_0000)
    }

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let [code_0, code_1] = self.code.to_ne_bytes();
        let [k_0, k_1, k_2, k_3] = self.k.to_ne_bytes();
        [code_0, code_1, self.jt, self.jf, k_0, k_1, k_2, k_3]
    }

    fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [code_0, code_1, jt, jf, k_0, k_1, k_2, k_3] = bytes;
        Self {
            code: u16::from_ne_bytes([code_0, code_1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k_0, k_1, k_2, k_3]),
        }
    }
}

/// A seccomp filter, ready for [`install`](super::install).
///
/// It is kept as the bytes that the kernel reads, so that a filter from the build or from a cache is used in place.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Program {
    bytes: Cow<'static, [u8]>,
}

impl Program {
    /// Puts instructions together.
    ///
    /// # Errors
    ///
    /// [`Error::NotAProgram`] if they are not 1 to 4096.
    pub fn new(instructions: impl IntoIterator<Item = Instruction>) -> Result<Self, Error> {
        let bytes: Vec<u8> = instructions
            .into_iter()
            .flat_map(Instruction::to_bytes)
            .collect();
        Self::from_bytes(bytes)
    }

    /// Takes the bytes of a program that [`Program::as_bytes`] gave on a machine of the same architecture.
    ///
    /// Only the size is checked; the kernel verifies the rest when the program is installed.
    ///
    /// # Errors
    ///
    /// [`Error::NotAProgram`] if the bytes are not 1 to 4096 whole instructions.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        if is_program_size(bytes.len()) {
            Ok(Self { bytes })
        } else {
            Err(Error::NotAProgram(bytes.len()))
        }
    }

    /// Takes the bytes of a program at compile time.
    ///
    /// # Panics
    ///
    /// The size is not that of a program; in a constant, that is an error of the build.
    pub(super) const fn from_static(bytes: &'static [u8]) -> Self {
        assert!(
            is_program_size(bytes.len()),
            "the bytes are not a seccomp program"
        );
        Self {
            bytes: Cow::Borrowed(bytes),
        }
    }

    /// The program as the kernel reads it: an array of `struct sock_filter`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of instructions, 1 to 4096.
    pub fn instruction_count(&self) -> u16 {
        u16::try_from(self.bytes.len() / Instruction::SIZE)
            .expect("a program has at most 4096 instructions")
    }

    /// The instruction at this place, or `None` behind the end.
    pub(super) fn instruction(&self, index: usize) -> Option<Instruction> {
        let (instructions, _) = self.bytes.as_chunks::<{ Instruction::SIZE }>();
        instructions
            .get(index)
            .copied()
            .map(Instruction::from_bytes)
    }

    /// The same with a question to a listener (`SECCOMP_RET_USER_NOTIF`) wherever this one ends a process or traps, or
    /// `None` where it does so nowhere.
    pub(super) fn asking(&self) -> Option<Self> {
        const ASK: u32 = 0x7fc0_0000;
        self.instructions()
            .any(Instruction::ends)
            .then(|| self.with_ends(ASK))
    }

    /// The same without an opinion on the calls that it would end a process for, because another filter has one.
    pub(crate) fn sparing(&self) -> Self {
        const ALLOW: u32 = 0x7fff_0000;
        self.with_ends(ALLOW)
    }

    fn with_ends(&self, verdict: u32) -> Self {
        let replace = |instruction: Instruction| {
            if instruction.ends() {
                Instruction {
                    k: verdict,
                    ..instruction
                }
            } else {
                instruction
            }
        };
        let bytes: Vec<u8> = self
            .instructions()
            .map(replace)
            .flat_map(Instruction::to_bytes)
            .collect();
        Self {
            bytes: bytes.into(),
        }
    }

    /// The instructions in order.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> {
        let (instructions, _) = self.bytes.as_chunks::<{ Instruction::SIZE }>();
        instructions.iter().copied().map(Instruction::from_bytes)
    }
}

impl TryFrom<Vec<u8>> for Program {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::from_bytes(bytes)
    }
}

impl From<Program> for Vec<u8> {
    fn from(program: Program) -> Self {
        program.bytes.into_owned()
    }
}

const fn is_program_size(bytes: usize) -> bool {
    bytes != 0
        && bytes.is_multiple_of(Instruction::SIZE)
        && bytes <= MAX_INSTRUCTIONS * Instruction::SIZE
}
