//! Clocks, affinity, and the order statistics of what they gave.

use std::sync::OnceLock;
use std::time::Instant;

/// Seconds on one of the system's clocks.
fn seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec` at the pointer, which is valid for that.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(failed, 0, "the system has clock {clock}");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// CPU seconds of this thread.
///
/// The machine is shared, so rates are per CPU second: what other tenants take does not count.
pub fn thread_cpu() -> f64 {
    seconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU seconds of another thread that is still running.
pub fn cpu_of(thread: libc::pthread_t) -> f64 {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the caller holds the thread's join handle, so the id is valid; the call writes one
    // clock id.
    let failed = unsafe { libc::pthread_getcpuclockid(thread, &mut clock) };
    assert_eq!(failed, 0, "a running thread has a clock");
    seconds(clock)
}

/// Measures a thread that may block: its CPU seconds, and the seconds it slept of its own accord
/// (on a lock), but not those in which it was ready to run and others had the CPU.
///
/// Without the second part a structure whose readers wait for its writer would look fast.
#[derive(Debug)]
pub struct Blocking {
    wall: Instant,
    cpu: f64,
    queued: f64,
}

impl Blocking {
    /// Starts the measurement of this thread.
    pub fn start() -> Blocking {
        Blocking { wall: Instant::now(), cpu: thread_cpu(), queued: queued() }
    }

    /// Seconds since the start, on the thread that started it.
    pub fn seconds(&self) -> f64 {
        let cpu = thread_cpu() - self.cpu;
        let wall = self.wall.elapsed().as_secs_f64() - (queued() - self.queued);
        cpu.max(wall)
    }
}

/// Seconds this thread was ready to run and did not.
fn queued() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")
        .expect("the kernel keeps scheduling statistics");
    let nanoseconds = stat.split(' ').nth(1).and_then(|field| field.parse::<f64>().ok());
    nanoseconds.expect("the second field is the time spent waiting for a CPU") * 1e-9
}

/// Keeps this thread on one CPU, if the machine has it.
pub fn pin(cpu: usize) {
    // SAFETY: an all-zero set is a valid, empty one; the calls read and write that set only. A CPU
    // that does not exist makes the call fail, and the thread stays where it is.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// A time stamp that everything before has finished for, in ticks.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both instructions exist on every x86-64 and touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        let ticks = core::arch::x86_64::_rdtsc();
        core::arch::x86_64::_mm_lfence();
        ticks
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Nanoseconds of a tick.
fn nanoseconds_per_tick() -> f64 {
    static TICK: OnceLock<f64> = OnceLock::new();
    *TICK.get_or_init(|| {
        let (start, clock) = (ticks(), Instant::now());
        while clock.elapsed().as_millis() < 60 {}
        let (end, elapsed) = (ticks(), clock.elapsed());
        elapsed.as_nanos() as f64 / (end - start) as f64
    })
}

/// Ticks of an empty measurement.
fn overhead() -> u64 {
    static OVERHEAD: OnceLock<u64> = OnceLock::new();
    *OVERHEAD.get_or_init(|| {
        let mut empty: Vec<u64> = (0..2001)
            .map(|_| {
                let start = ticks();
                ticks() - start
            })
            .collect();
        empty.sort_unstable();
        empty[empty.len() / 2]
    })
}

/// Durations of single calls.
#[derive(Debug, Default)]
pub struct Samples(Vec<u64>);

impl Samples {
    /// Room for so many without growing.
    pub fn with_capacity(n: usize) -> Samples {
        overhead();
        Samples(Vec::with_capacity(n))
    }

    /// Adds one duration, from two time stamps.
    #[inline(always)]
    pub fn push(&mut self, start: u64, end: u64) {
        self.0.push(end - start);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The duration, in nanoseconds, that a share of `q` does not exceed; the cost of measuring is
    /// taken off. Not a number when there are no samples.
    pub fn quantile(&mut self, q: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        self.0.sort_unstable();
        let at = ((self.0.len() as f64 * q).ceil() as usize).saturating_sub(1).min(last);
        self.0[at].saturating_sub(overhead()) as f64 * nanoseconds_per_tick()
    }
}

/// The median; not a number for none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
