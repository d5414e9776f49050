//! Huge pages of memory, which this process does without.
//!
//! The allocator asks the kernel for pages of 2 MiB wherever it can, and the kernel then backs every 2 MiB that were touched
//! anywhere: a process that uses 11 MB idle held 63, and went on growing, because what is freed in between is not given
//! back. Maps are not concerned: they are files.

/// Takes effect for all memory that is touched from here on. Where the kernel does not know this, nothing happens.
pub fn do_without() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay in use");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_kernel_hears_that_huge_pages_are_not_wanted() {
        super::do_without();

        assert!(nix::sys::prctl::get_thp_disable().unwrap());
    }
}
