//! The system call that installs a filter.
#![expect(unsafe_code, reason = "nix has no seccomp(2)")]

use super::program::Program;
use std::io;

/// Puts the calling thread, and what it will fork and execute, under the filter for good.
///
/// To be called once `no_new_privs` is set (the kernel answers EACCES otherwise) and as the last step before
/// `execve`. It only makes a system call, so it may be called between `fork` and `execve`. Other threads of the
/// process are not put under the filter.
///
/// # Errors
///
/// What the kernel says: EACCES as above, EINVAL if the program is not valid, ENOSYS or EINVAL if the kernel has no
/// seccomp filters. The process is then **not** confined and must not go on.
pub fn install(program: &Program) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.instruction_count(),
        // Bytes, not `sock_filter`s, and perhaps not aligned as such: the kernel copies them without looking.
        filter: program
            .as_bytes()
            .as_ptr()
            .cast::<libc::c_void>()
            .cast_mut()
            .cast(),
    };
    // SAFETY: `filter` and the bytes that it points to live until the call returns, `len` is their length in units of
    // 8 bytes, and the kernel only reads them. No pointer is kept.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            0_usize,
            &raw const filter,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
