-- One more copy of each block from a run's first on that somebody stored before, where the run's names have the
-- proof of these blocks and what they are called. KEYS: the run, and its names. ARGV: what the run has as `h`, the proof,
-- the slot, and what it holds then. Answers 1; or 0 without having changed anything where it is not so, or the slot
-- holds something of the run.
return redis.pcall('HGET', KEYS[1], 'h') == ARGV[1] and redis.pcall('HGET', KEYS[2], 'j') == ARGV[2]
  and redis.call('HSETNX', KEYS[1], ARGV[3], ARGV[4]) or 0
