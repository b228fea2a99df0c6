//! Which tier a medium is.

use crate::block::Tier;

/// The tier of an event's `medium` and `locality`.
///
/// An event without a medium is about the engine's own memory: vLLM before 0.10.2 and SGLang up to
/// 0.5.6 knew no other. `locality` (vLLM 0.26 and later) is `LOCAL` or `REMOTE`. Case does not
/// matter. What is not known is [`Tier::Unknown`]: a wrong guess would credit a worker with blocks
/// that it cannot use at once.
pub(super) fn tier(medium: Option<&[u8]>, locality: Option<&[u8]>) -> Tier {
    let is = |value: &[u8], names: &[&[u8]]| names.iter().any(|n| value.eq_ignore_ascii_case(n));
    let local = match locality {
        None => false,
        Some(l) if is(l, &[b"LOCAL"]) => true,
        Some(l) if is(l, &[b"REMOTE"]) => return Tier::Remote,
        Some(_) => return Tier::Unknown,
    };
    match medium {
        None => Tier::Gpu,
        Some(m) if is(m, &[b"GPU"]) => Tier::Gpu,
        // CPU_PINNED: SGLang. CPU_TIER1 and 2: hosts with two kinds of memory.
        Some(m) if is(m, &[b"CPU", b"CPU_PINNED", b"CPU_TIER1", b"CPU_TIER2"]) => Tier::Cpu,
        // Other names that start with NV may mean anything, NVMe over fabrics too.
        Some(m) if is(m, &[b"DISK", b"NVME"]) => Tier::Disk,
        // A file system or a store: mounted from elsewhere unless the event says it is not.
        Some(m) if is(m, &[b"FS", b"STORAGE"]) => {
            if local {
                Tier::Disk
            } else {
                Tier::Remote
            }
        }
        Some(m) if is(m, &[b"OBJ", b"EXTERNAL", b"REMOTE"]) => Tier::Remote,
        Some(_) => Tier::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(medium: Option<&str>, locality: Option<&str>) -> Tier {
        super::tier(medium.map(str::as_bytes), locality.map(str::as_bytes))
    }

    #[test]
    fn a_medium_is_known_in_any_case() {
        let table = [
            (None, Tier::Gpu),
            (Some("GPU"), Tier::Gpu),
            (Some("gpu"), Tier::Gpu),
            (Some("cpu"), Tier::Cpu),
            (Some("CPU_PINNED"), Tier::Cpu),
            (Some("CPU_TIER2"), Tier::Cpu),
            (Some("DISK"), Tier::Disk),
            (Some("NVMe"), Tier::Disk),
            (Some("STORAGE"), Tier::Remote),
            (Some("FS"), Tier::Remote),
            (Some("OBJ"), Tier::Remote),
            (Some("EXTERNAL"), Tier::Remote),
        ];
        for (medium, wanted) in table {
            assert_eq!(tier(medium, None), wanted, "{medium:?}");
        }
    }

    #[test]
    fn an_unknown_medium_or_locality_is_never_the_gpu() {
        for medium in ["", "GPU2", "NVLINK", "NVME_OF", "HBM"] {
            assert_eq!(tier(Some(medium), None), Tier::Unknown, "{medium}");
        }
        assert_eq!(tier(None, Some("RACK")), Tier::Unknown);
    }

    #[test]
    fn locality_remote_overrides_the_medium_and_local_makes_a_store_a_disk() {
        assert_eq!(tier(Some("GPU"), Some("REMOTE")), Tier::Remote);
        assert_eq!(tier(Some("HBM"), Some("remote")), Tier::Remote);
        assert_eq!(tier(Some("STORAGE"), Some("LOCAL")), Tier::Disk);
        assert_eq!(tier(Some("CPU"), Some("LOCAL")), Tier::Cpu);
    }
}
