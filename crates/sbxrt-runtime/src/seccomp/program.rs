//! A classic BPF program, as the kernel takes it for a seccomp filter (`linux/filter.h`).

use super::profile::Error;
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// The instructions in order.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> {
        let (instructions, _) = self.bytes.as_chunks::<{ Instruction::SIZE }>();
        instructions.iter().copied().map(Instruction::from_bytes)
    }
}

const fn is_program_size(bytes: usize) -> bool {
    bytes != 0
        && bytes.is_multiple_of(Instruction::SIZE)
        && bytes <= MAX_INSTRUCTIONS * Instruction::SIZE
}
