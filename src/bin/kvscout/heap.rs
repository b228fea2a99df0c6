//! What the C library keeps of memory that was freed.
//!
//! Invariant: what is set is a number that the allocator reads; no memory is touched by it.

/// From this size on a piece is asked of the system by itself, and given back when it is freed: images of the index, not prompts,
/// for which the system would be asked too often.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const APART: libc::c_int = 1 << 20;

/// Has freed memory be used again, or go. By default glibc makes eight arenas for each processor, and each keeps for good the most that
/// replays, audits and images ever took in it at a time: a piece that is free in one is no use to a thread of another. Here there are as many as
/// processors. And it takes pieces of up to 32 MiB from there once it has seen such a piece freed, which then lie between others. To be called
/// before there are other threads.
pub(crate) fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = libc::c_int::try_from(processors).unwrap_or(libc::c_int::MAX);
        #[allow(unsafe_code)]
        // SAFETY: `mallopt` takes any number and refuses what it does not know; no thread allocates beside it.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, APART);
            // As glibc itself does with what it finds out: or each prompt would be asked of the system, and given back.
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * APART);
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::fs::read_to_string;
    use std::process::Command;

    /// Threads that allocate at the same time, in a process of their own: which arenas there are is decided once for all.
    #[test]
    fn threads_share_as_many_arenas_as_there_are_processors() {
        if std::env::var_os("KVSCOUT_TEST_ARENAS").is_none() {
            let name = "heap::tests::threads_share_as_many_arenas_as_there_are_processors";
            let mut again = Command::new(std::env::current_exe().unwrap());
            let again = again.args(["--exact", name, "--test-threads", "1"]);
            let output = again.env("KVSCOUT_TEST_ARENAS", "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        super::keep_little();
        let processors = std::thread::available_parallelism().unwrap().get();
        let together = std::sync::Barrier::new(4 * processors);
        let arenas = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4 * processors)
                .map(|_| {
                    scope.spawn(|| {
                        let piece = vec![1_u8; 64 << 10];
                        together.wait();
                        let maps = read_to_string("/proc/self/maps").unwrap();
                        together.wait();
                        // Each but the first lies at a multiple of 64 MiB.
                        let begins = |line: &str| {
                            let at = usize::from_str_radix(line.split('-').next()?, 16).ok()?;
                            (at.is_multiple_of(64 << 20) && line.contains(" rw-p ")).then_some(at)
                        };
                        (piece.len(), maps.lines().filter_map(begins).count())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap().1).max().unwrap()
        });
        assert!(arenas < processors.max(2), "{arenas} besides the first");
    }

    /// In MiB.
    fn resident() -> usize {
        let pages = read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() / 256
    }

    #[test]
    fn images_that_were_freed_are_given_back_whatever_lies_between_them() {
        super::keep_little();
        let (before, mut kept) = (resident(), Vec::new());
        // After the first time the C library would take them from where the others are.
        for _ in 0..2 {
            let mut with_neighbour = || {
                kept.push(vec![1_u8; 1000]);
                vec![1_u8; 4 << 20]
            };
            let images: Vec<Vec<u8>> = (0..50).map(|_| with_neighbour()).collect();
            assert!(resident() >= before + 150, "they are there");
            drop(images);
        }
        assert!(resident() < before + 100, "{} from {before}", resident());
    }
}
