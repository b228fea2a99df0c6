//! Which fault strikes whom when: all of it follows from one seed.

use std::time::Duration;

use super::random::Random;

/// What goes wrong with one engine.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Its next batches are not sent live; the replay buffer has them.
    Drop(usize),
    /// Its next batches are sent twice.
    Twice(usize),
    /// The batch before so many others is sent again.
    Repeat(usize),
    /// It neither steps nor sends nor answers.
    Stall(Duration),
    /// Both sockets are closed and opened again; it steps on meanwhile.
    Outage(Duration),
    /// It starts anew, after this time without sockets.
    Restart(Duration),
    /// It starts anew, and its numbers reach those of its last life, and so many more, before anyone
    /// can connect. Then it waits for somebody, so that the next number comes live.
    Overtake(usize),
    /// It does nothing until somebody has subscribed, for a while at most.
    Idle,
    /// It drops its whole cache.
    Clear,
    /// Its next answer to a replay request goes wrong.
    Replay(ReplayFault),
}

/// How an answer to a replay request goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReplayFault {
    /// So many batches, no end marker.
    CutAfter(usize),
    /// Some batches are missing, the end marker comes.
    Holes,
    /// The first batch that is new to whoever asks is missing, and so it is once more: it must look as
    /// if the engine itself did not have it.
    Beheaded,
    /// Nothing comes.
    Silence,
}

/// What happens at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Strike {
        engine: usize,
        fault: Fault,
    },
    /// kvscout is killed and started again; `amnesia` takes its state away.
    Kill {
        amnesia: bool,
    },
}

/// The acts of so long a time, in order.
pub(crate) fn schedule(seed: u64, engines: usize, time: Duration) -> Vec<(Duration, Act)> {
    let mut random = Random::new(seed);
    let mut acts = Vec::new();
    for engine in 0..engines {
        let mut random = random.fork();
        let mut at = Duration::from_millis(500);
        loop {
            at += Duration::from_millis(random.within(300, 6_000) as u64);
            if at >= time {
                break;
            }
            // Whoever is given up is rebuilt from 10 s later on: that has to fit in.
            let early = at < time / 2;
            let mut strike = |fault| acts.push((at, Act::Strike { engine, fault }));
            // A replay that goes wrong needs a reason to be asked for.
            if random.below(4) == 0 {
                replay_faults(&mut random, early)
                    .into_iter()
                    .map(Fault::Replay)
                    .for_each(&mut strike);
            }
            let fault = fault(&mut random);
            strike(fault);
            if matches!(fault, Fault::Outage(_) | Fault::Restart(_)) && random.below(2) == 0 {
                strike(Fault::Idle);
            }
        }
    }
    let kills = (time.as_secs() / 14).max(1);
    for kill in 0..kills {
        let span = (time / kills as u32).as_millis() as usize;
        let at = span * kill as usize + random.within(span / 4, span * 3 / 4);
        let act = Act::Kill { amnesia: kill % 3 == 2 };
        acts.push((Duration::from_millis(at as u64), act));
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn fault(random: &mut Random) -> Fault {
    let mut pause = |from, to| Duration::from_millis(random.within(from, to) as u64);
    let (short, long) = (pause(20, 400), pause(200, 2_000));
    match random.below(100) {
        0..=29 => Fault::Drop(random.within(1, 5)),
        30..=37 => Fault::Twice(random.within(1, 5)),
        38..=45 => Fault::Repeat(random.within(0, 4)),
        46..=55 => Fault::Stall(long),
        56..=63 => Fault::Outage(short),
        64..=71 => Fault::Outage(long),
        72..=79 => Fault::Restart(short),
        80..=83 => Fault::Restart(long),
        // Exactly the number that would have come next is the hardest to tell.
        84..=88 => Fault::Overtake(0),
        89..=92 => Fault::Overtake(random.within(1, 60)),
        _ => Fault::Clear,
    }
}

fn replay_faults(random: &mut Random, early: bool) -> Vec<ReplayFault> {
    match random.below(10) {
        0..=3 => vec![ReplayFault::CutAfter(random.within(0, 40))],
        4..=6 => vec![ReplayFault::Holes],
        7 => vec![ReplayFault::Silence],
        8 if early => vec![ReplayFault::CutAfter(0); 6],
        _ if early => vec![ReplayFault::Beheaded; 2],
        _ => vec![ReplayFault::Holes; 3],
    }
}
