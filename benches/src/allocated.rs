//! The allocator of the product, counting what a thread holds of it.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

/// For `#[global_allocator]`.
pub struct Counted;

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that this thread has asked for so far, less those that it gave back.
pub fn by_this_thread() -> i64 {
    BYTES.get()
}

fn count(bytes: i64) {
    // A thread that ends counts no more.
    let _ = BYTES.try_with(|held| held.set(held.get().wrapping_add(bytes)));
}

#[expect(unsafe_code, reason = "an allocator is unsafe by nature; each call goes on to the allocator as it came")]
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        unsafe { MiMalloc.realloc(at, layout, size) }
    }
}
