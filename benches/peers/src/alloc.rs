//! Counts the bytes that are allocated, in the processes that measure memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

/// The system's allocator, with a count that is off until [`start_counting`].
#[derive(Debug)]
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);

fn count(bytes: i64) {
    if ON.load(Relaxed) {
        LIVE.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Counts from here on, for the rest of the process.
pub fn start_counting() {
    ON.store(true, Relaxed);
}

/// Bytes allocated and not freed since counting began.
pub fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// Bytes of this process in memory, after giving back what the allocator holds free.
pub fn resident() -> i64 {
    // SAFETY: the call has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let stat = std::fs::read_to_string("/proc/self/statm").expect("Linux says what it uses");
    let pages = stat.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok());
    // SAFETY: the call has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.expect("the second field counts resident pages") * page
}
