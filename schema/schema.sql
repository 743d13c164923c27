-- SPDX-License-Identifier: Apache-2.0
-- The trace file. One recording (a program and its children) is one SQLite database of this form.
--
-- Units: times are nanoseconds since the recording began (CLOCK_MONOTONIC_RAW), durations nanoseconds, sizes bytes, addresses
-- the process's own virtual addresses (signed 64-bit integers, as SQLite has them; user addresses are always positive).
-- NULL means "not known", never 0. Ids are per trace unless said otherwise. Stack 0 means "no stack was taken".
--
-- Two more tables appear when the file is opened by `heapledger sql`, or in the sqlite3 shell after loading heapledger_sqlite:
--   event(time_ns, process, thread, kind, id, address, size, usable, alignment, ended_id, stack)   one row per malloc-family call
--   fault(time_ns, process, thread, address, ip, major, kernel, block_id, site, touch)             one row per page fault
-- They are eponymous virtual tables over event_batch and fault_batch; nothing in this file names them, so that any sqlite3
-- opens and dumps it. Likewise `stack` and `site` in a trace that has many of them: where the final pass finds more than 65,536
-- stacks, or more than 16,384 sites, it leaves them packed (stack_batch, site_batch) and drops the ordinary table.

PRAGMA application_id = 0x484C4447;  -- "HLDG"
PRAGMA user_version = 2;

-- Facts about the recording as a whole. Keys: see schema/README.md.
CREATE TABLE meta (
  key TEXT PRIMARY KEY,  -- lower_case name
  value                  -- integer or text
) WITHOUT ROWID;

-- One row per program image: a fork makes a row, and so does an exec (with the same pid).
CREATE TABLE process (
  id INTEGER PRIMARY KEY,                        -- 1 is the program that was started
  pid INTEGER NOT NULL,                          -- in the collector's pid namespace
  ppid INTEGER,                                  -- of its parent, likewise
  parent INTEGER REFERENCES process,             -- row of the process that forked or exec'ed it, where recorded
  forked INTEGER NOT NULL DEFAULT 0,             -- 1: began as a fork of `parent`, whose heap it inherited; 0: began as a new image
  image INTEGER NOT NULL DEFAULT 0,              -- which shared region it wrote to: ids (event.id) are unique within one image
  exe TEXT,                                      -- path of its executable
  command TEXT,                                  -- its arguments, quoted for a shell
  recorded INTEGER NOT NULL,                     -- 1: its calls are in the trace; 0: they are not, and `reason` says why; 2: in part
  reason TEXT,                                   -- why they are not, one line; NULL where recorded is 1
  start_ns INTEGER,                              -- first moment that was seen
  end_ns INTEGER,                                -- NULL: still running when the recording ended, or not seen
  ended_by TEXT,                                 -- exit | signal | exec; NULL: not known, or still running when the recording ended
  exit_status INTEGER,                           -- NULL where unknown or ended otherwise, never 0 for that
  signal INTEGER,                                -- that ended it
  -- Settings its allocator started with (policy_event has the changes).
  mmap_threshold INTEGER,                        -- bytes; larger requests get a mapping of their own
  mmap_threshold_dynamic INTEGER,                -- 1: it grows as mapped blocks are freed (glibc's rule); 0: it was set by hand
  trim_threshold INTEGER,                        -- bytes free at the top of the heap from which they are given back
  top_pad INTEGER,                               -- bytes asked for beyond what is needed when the heap grows
  mmap_max INTEGER,                              -- mappings that may exist at once
  arena_max INTEGER,                             -- arenas; 0: by the number of cpus
  tcache_count INTEGER,                          -- blocks kept per size and thread
  heap_start INTEGER,                            -- first break the allocator saw
  -- What was recorded, and what was not.
  events INTEGER NOT NULL DEFAULT 0,             -- malloc-family calls in event_batch
  events_lost INTEGER NOT NULL DEFAULT 0,        -- calls that could not be recorded
  incomplete_stacks INTEGER NOT NULL DEFAULT 0,  -- events whose stack could not be walked to its root
  stacks_compared INTEGER,                       -- walked by libunwind too (record --verify-stacks), both to the outermost frame; NULL: not asked for
  stacks_mismatched INTEGER,                     -- of them: where the two walks differ
  stacks_incomparable INTEGER,                   -- walked by both, but one of the two did not come to the outermost frame
  stall_ns INTEGER NOT NULL DEFAULT 0,           -- time its threads waited for room in their rings
  recorder_syscalls INTEGER NOT NULL DEFAULT 0,  -- system calls made by the recorder inside the process
  -- Page faults by three counters (DESIGN: they are three lines, not one).
  rusage_start_minor INTEGER,                    -- getrusage when recording began in it (the loader's, before)
  rusage_start_major INTEGER,                    -- likewise, major
  rusage_minor INTEGER,                          -- getrusage at its end, or the last value seen
  rusage_major INTEGER,                          -- likewise, major
  perf_minor INTEGER,                            -- rows in fault_batch
  perf_major INTEGER,                            -- likewise, major
  perf_lost INTEGER,                             -- PERF_RECORD_LOST, charged to the process where the kernel says whose, else to process 1
  rss_peak_bytes INTEGER                         -- VmHWM, last value seen
);

-- One row per thread that made an event, faulted, or was seen in /proc.
CREATE TABLE thread (
  id INTEGER PRIMARY KEY,                       -- per trace; event.thread and fault.thread
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  tid INTEGER NOT NULL,                         -- in the collector's pid namespace
  name TEXT,                                    -- its comm, last seen
  start_ns INTEGER,                             -- first moment that was seen
  end_ns INTEGER,                               -- NULL: until its process ended, or not seen
  stall_ns INTEGER NOT NULL DEFAULT 0,          -- time it waited for room in its ring
  minor_faults INTEGER,                         -- by /proc/PID/task/TID/stat, last value seen
  major_faults INTEGER                          -- likewise, major
);

-- ELF files mapped into a process, from when to when.
CREATE TABLE module (
  id INTEGER PRIMARY KEY,                       -- per trace
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  path TEXT NOT NULL,                           -- absolute; [vdso] for the kernel's own
  build_id TEXT,                                -- lower-case hex
  base INTEGER NOT NULL,                        -- address in memory = base + address in the file's ELF headers
  start_address INTEGER NOT NULL,               -- first mapped address
  end_address INTEGER NOT NULL,                 -- one past the last
  start_ns INTEGER,                             -- when it was mapped; NULL: before the recording
  end_ns INTEGER                                -- NULL: until the process ended
);

-- One row per distinct code address. Frames of forked children share the parent's rows where the module is the same file at the same base.
CREATE TABLE frame (
  id INTEGER PRIMARY KEY,            -- 1 is "[incomplete]": the outermost frame of a stack that could not be walked to its root
  module INTEGER REFERENCES module,  -- NULL: in no known module (JIT code); offset is then the address itself
  offset INTEGER NOT NULL            -- return address minus module.base; look up offset - 1
);

-- The call tree: a stack is a node, read towards the root by parent. Written by the final pass, from stack_batch; in a large
-- trace a virtual table (see above).
CREATE TABLE stack (
  id INTEGER PRIMARY KEY,                  -- from 1
  parent INTEGER NOT NULL,                 -- 0: this is an outermost frame
  frame INTEGER NOT NULL REFERENCES frame  -- its innermost frame
);

-- New stacks of the recording, packed. Where they are few the final pass makes rows of `stack` of them and empties this table.
CREATE TABLE stack_batch (
  id INTEGER PRIMARY KEY,   -- of its first stack; the others follow
  stacks INTEGER NOT NULL,  -- how many
  data BLOB NOT NULL        -- schema/stack_batch.h; README.md, "Stack batches"
);

-- Names of functions and source files, each once: what view `symbol` reads, with the next one. Written by the final pass.
CREATE TABLE symbol_name (
  id INTEGER PRIMARY KEY,  -- from 1
  name TEXT NOT NULL       -- demangled, or a path
);
-- Where frames are, by names' ids.
CREATE TABLE symbol_place (
  frame INTEGER NOT NULL REFERENCES frame,  -- row of frame
  inline_depth INTEGER NOT NULL,            -- 0: the function itself
  function INTEGER REFERENCES symbol_name,  -- NULL: unknown
  file INTEGER REFERENCES symbol_name,      -- source file; NULL: unknown
  line INTEGER,                             -- NULL: unknown
  PRIMARY KEY (frame, inline_depth)
) WITHOUT ROWID;

-- One row per memory system call, by the allocator, by the program through libc's wrappers, or by the recorder itself. With
-- meta.syscall_source = 'kernel' every one there was, with the kernel's times; of a call that no wrapper saw one frame or two are known.
CREATE TABLE syscall (
  time_ns INTEGER NOT NULL,                     -- when it was entered
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  thread INTEGER NOT NULL REFERENCES thread,    -- that made it
  name TEXT NOT NULL,                           -- brk | mmap | munmap | mremap | madvise | mprotect
  arg0 INTEGER, arg1 INTEGER, arg2 INTEGER, arg3 INTEGER, arg4 INTEGER, arg5 INTEGER,  -- arguments as passed, 0 where the call has fewer
  result INTEGER,                               -- as the kernel gives it: -errno on failure
  duration_ns INTEGER NOT NULL,                 -- from entry to return
  cause TEXT,                                   -- why the allocator made it ("grow top", "trim top", ...); NULL for the program's own
  origin TEXT NOT NULL,                         -- allocator | program | recorder | loader (the dynamic linker itself)
  stack INTEGER NOT NULL                        -- of the call that caused it
);

-- Decisions of the allocator that change how it behaves from here on.
CREATE TABLE policy_event (
  time_ns INTEGER NOT NULL,                     -- when it was decided
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  thread INTEGER NOT NULL REFERENCES thread,    -- whose call led to it
  kind TEXT NOT NULL,                           -- "threshold raised", "top grown", "trim", ...
  old_value INTEGER,                            -- what it was
  new_value INTEGER,                            -- what it is now
  stack INTEGER NOT NULL                        -- of that call; 0: none was taken
);

-- Marks set by the program (heapledger_mark) or from outside, and notes by the recorder about itself.
CREATE TABLE mark (
  time_ns INTEGER NOT NULL,                     -- when it was set
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  thread INTEGER REFERENCES thread,             -- that set it; NULL: from outside
  kind TEXT NOT NULL,                           -- mark | note
  text TEXT NOT NULL,                           -- what was said; the message of malloc where it aborted the program
  stack INTEGER NOT NULL DEFAULT 0              -- where, 0: none was taken
);

-- Malloc-family calls, packed (schema/event_batch.h). Inside a batch events are sorted by time; batches of a process may overlap in time.
CREATE TABLE event_batch (
  id INTEGER PRIMARY KEY,                       -- per trace
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  events INTEGER NOT NULL,                      -- rows in it
  time_min_ns INTEGER NOT NULL,                 -- of its first row
  time_max_ns INTEGER NOT NULL,                 -- of its last row
  data BLOB NOT NULL                            -- see schema/README.md, "Event batches"
);

-- Page faults, packed (schema/fault_batch.h), sorted and overlapping likewise. `attribution` is added by the final pass.
CREATE TABLE fault_batch (
  id INTEGER PRIMARY KEY,                       -- per trace
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  faults INTEGER NOT NULL,                      -- rows in it
  time_min_ns INTEGER NOT NULL,                 -- of its first row
  time_max_ns INTEGER NOT NULL,                 -- of its last row
  data BLOB NOT NULL,                           -- see schema/README.md, "Fault batches"
  attribution BLOB                              -- per fault: block id, site, touch; NULL until the final pass
);

-- What the kernel said of a process's memory at a moment. The program runs on while it is taken: from time_ns to end_ns.
CREATE TABLE snapshot (
  id INTEGER PRIMARY KEY,                       -- per trace
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  time_ns INTEGER NOT NULL,                     -- when taking it began
  end_ns INTEGER NOT NULL,                      -- when it was done
  reason TEXT NOT NULL,                         -- start | schedule | peak | mark | exit
  rss_bytes INTEGER,                            -- smaps: sum of Rss
  pss_bytes INTEGER,                            -- sum of Pss: shared pages divided by their users
  swap_bytes INTEGER,                           -- sum of Swap
  rss_peak_bytes INTEGER                        -- VmHWM of status
);

-- The lines of smaps at a snapshot.
CREATE TABLE region (
  snapshot INTEGER NOT NULL REFERENCES snapshot,  -- row of snapshot
  start INTEGER NOT NULL,                         -- first address
  end INTEGER NOT NULL,                           -- one past the last
  kind TEXT NOT NULL,                             -- text | data | bss | heap | block | file | anonymous | stack | thread stack | recorder | vdso | shared
  name TEXT,                                      -- path or [heap], [stack], ...
  permissions TEXT NOT NULL,                      -- as in maps: rwxp
  size_bytes INTEGER NOT NULL,                    -- end minus start
  rss_bytes INTEGER NOT NULL,                     -- Rss
  swap_bytes INTEGER NOT NULL,                    -- Swap
  private_dirty_bytes INTEGER NOT NULL,           -- Private_Dirty
  anonymous_bytes INTEGER NOT NULL,               -- Anonymous
  huge_bytes INTEGER NOT NULL,                    -- AnonHugePages
  shared_bytes INTEGER NOT NULL DEFAULT 0,        -- Shared_Clean and Shared_Dirty: pages that another process has mapped too
  PRIMARY KEY (snapshot, start)
) WITHOUT ROWID;

-- Which pages of the heap's regions were resident at a snapshot (pagemap).
CREATE TABLE residency (
  snapshot INTEGER NOT NULL REFERENCES snapshot,  -- row of snapshot
  start INTEGER NOT NULL,                         -- address of the first page
  pages INTEGER NOT NULL,                         -- OS pages from there on
  resident INTEGER NOT NULL,                      -- how many of them
  runs BLOB NOT NULL                              -- varints: lengths in pages of runs, alternately absent and resident, absent first
);

-- From here on: filled by the final pass (`heapledger-analyzer finalize`), empty before.

-- One row per process and allocating stack. sum(calls), sum(bytes), ... over a process equal its totals. A forked child's
-- inherited blocks are among its live ones, but no calls of its own.
CREATE TABLE site (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  stack INTEGER NOT NULL,                       -- that allocated
  calls INTEGER NOT NULL,                       -- successful allocations (a realloc is one)
  bytes INTEGER NOT NULL,                       -- requested by them
  live_bytes_peak INTEGER NOT NULL,             -- of its blocks, when the process's live bytes peaked
  live_blocks_peak INTEGER NOT NULL,            -- blocks at that moment
  live_bytes_end INTEGER NOT NULL,              -- requested bytes not freed when the process ended
  live_blocks_end INTEGER NOT NULL,             -- blocks not freed
  inherited_bytes_end INTEGER NOT NULL,         -- of live_bytes_end: allocated by an ancestor, before the fork
  inherited_blocks_end INTEGER NOT NULL,        -- of live_blocks_end likewise
  temporary INTEGER NOT NULL,                   -- blocks freed before the same thread allocated again
  faults INTEGER NOT NULL,                      -- page faults on its blocks
  syscalls INTEGER NOT NULL,                    -- memory system calls of the allocator made by this stack's calls
  syscall_ns INTEGER NOT NULL,                  -- time in them
  calls_with_syscall INTEGER NOT NULL,          -- allocations that needed memory from the system
  mapped_blocks INTEGER NOT NULL,               -- blocks that got a mapping of their own
  mapped_ns INTEGER NOT NULL,                   -- time in mapping and unmapping them
  growth INTEGER NOT NULL,                      -- of 16 parts of the run, equal in calls: how many ended with more live bytes than ever before
  first_ns INTEGER NOT NULL,                    -- of its first allocation
  last_ns INTEGER NOT NULL,                     -- of its last allocation
  PRIMARY KEY (process, stack)
) WITHOUT ROWID;

-- Rows of `site`, packed, where they are many.
CREATE TABLE site_batch (
  id INTEGER PRIMARY KEY,                       -- per trace
  process INTEGER NOT NULL REFERENCES process,  -- of all its rows
  sites INTEGER NOT NULL,                       -- how many
  stack_min INTEGER NOT NULL,                   -- of the first
  stack_max INTEGER NOT NULL,                   -- of the last
  data BLOB NOT NULL                            -- schema/site_batch.h; README.md, "Site batches"
);

-- Calls as the program made them, by the function's name; failed ones are among them. free(NULL) is no call.
CREATE TABLE call_count (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  kind TEXT NOT NULL,                           -- as in `event`
  calls INTEGER NOT NULL,                       -- how many
  failed INTEGER NOT NULL,                      -- of them: returned NULL or an error
  PRIMARY KEY (process, kind)
) WITHOUT ROWID;

-- The heap over time: at most some thousand rows per process.
CREATE TABLE timeline (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  time_ns INTEGER NOT NULL,                     -- moment of the row
  live_bytes INTEGER NOT NULL,                  -- requested by live blocks
  live_blocks INTEGER NOT NULL,                 -- blocks not freed yet
  held_bytes INTEGER NOT NULL,                  -- held from the system by the allocator: brk heap and mappings
  resident_bytes INTEGER,                       -- of them, by faults and releases; NULL without perf
  calls INTEGER NOT NULL,                       -- since the process began
  syscalls INTEGER NOT NULL,                    -- memory system calls since the process began
  faults INTEGER NOT NULL                       -- page faults since the process began
);

-- Fragmentation at the moments that reports default to.
CREATE TABLE fragmentation (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak (of held bytes) | fragmented (most held and not live) | exit
  at_ns INTEGER NOT NULL,                       -- when that was
  held_bytes INTEGER NOT NULL,                  -- held from the system by the allocator
  live_bytes INTEGER NOT NULL,                  -- usable bytes of live blocks
  requested_bytes INTEGER NOT NULL,             -- asked for by live blocks
  free_bytes INTEGER NOT NULL,                  -- held and in no live block nor header
  free_resident_bytes INTEGER,                  -- of them resident; NULL without perf
  external REAL NOT NULL,                       -- 1 - live / held
  internal REAL NOT NULL,                       -- (live - requested) / live
  largest_free_bytes INTEGER NOT NULL,          -- longest free run
  cached_bytes INTEGER NOT NULL,                -- of free_bytes: in threads' caches
  fast_bytes INTEGER NOT NULL,                  -- of free_bytes: in fastbins
  top_bytes INTEGER NOT NULL,                   -- of free_bytes: at the end of the brk heap
  PRIMARY KEY (process, at)
) WITHOUT ROWID;

-- Free chunks by size, at the same moments.
CREATE TABLE free_histogram (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak | fragmented | exit
  bytes_min INTEGER NOT NULL,                   -- smallest chunk of the row
  bytes_max INTEGER NOT NULL,                   -- largest
  chunks INTEGER NOT NULL,                      -- how many
  bytes INTEGER NOT NULL                        -- sum of them
);

-- Chunks that keep free memory from going back to the system, by allocating stack: those at the end of the brk heap and of arenas' last heaps.
CREATE TABLE pinner (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak | fragmented | exit
  heap INTEGER NOT NULL,                        -- 0: the brk heap; else the address of an arena's last heap
  stack INTEGER NOT NULL,                       -- that allocated the pinning blocks
  state TEXT NOT NULL,                          -- live | cached (freed, in a thread's cache) | fast (freed, in a fastbin)
  thread INTEGER,                               -- that allocated the highest; of cached ones: whose cache
  bytes_released_if_freed INTEGER NOT NULL,     -- what their free() would give back at once, the rows before being gone; 0 where they stay in a cache
  held_bytes INTEGER NOT NULL,                  -- what would go back if they did not exist, the rows before being gone
  held_resident_bytes INTEGER,                  -- of them resident; NULL where that is not known
  own_bytes INTEGER NOT NULL,                   -- of their own chunks: the rest of what is held is free already
  blocks INTEGER NOT NULL,                      -- how many pin
  cached_blocks INTEGER NOT NULL,               -- of them: would go to a thread's cache or a fastbin if freed, or are there
  age_ns INTEGER NOT NULL                       -- of the oldest
);

-- How often the break or an arena's heap grew for a request, by the stack that made it; and how often although that arena had as many bytes free,
-- in pieces too small or in threads' caches.
CREATE TABLE heap_growth (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  stack INTEGER NOT NULL,                       -- that allocated
  growths INTEGER NOT NULL,                     -- how often a heap grew for it
  bytes INTEGER NOT NULL,                       -- by how much together
  failed_reuses INTEGER NOT NULL,               -- of growths: at least the request's chunk was free there
  failed_bytes INTEGER NOT NULL,                -- of bytes: got by these
  free_bytes_max INTEGER NOT NULL,              -- most that was free at one of these
  PRIMARY KEY (process, stack)
) WITHOUT ROWID;

-- Free bytes on resident pages with live blocks, by the stacks of those blocks: in RSS because of them. Pages of several stacks are shared out by
-- live bytes. The stacks with most; one row with stack NULL sums up the rest.
CREATE TABLE page_holder (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak | fragmented | exit
  stack INTEGER,                                -- that allocated; NULL: all others
  stacks INTEGER NOT NULL,                      -- how many the row is for
  pages INTEGER NOT NULL,                       -- with free bytes, held alone or shared
  live_bytes INTEGER NOT NULL,                  -- of its chunks on them
  free_bytes INTEGER NOT NULL                   -- its share of the free bytes on them
);

-- The heap as a picture: what each piece of memory was at moments of the run, the last row at its end. A cell is cell_bytes of addresses, a power of
-- two and the same in all rows of a process; cell I begins at I * cell_bytes. `cells` are runs, lowest address first, of numbers in little-endian
-- groups of seven bits, the eighth bit set in all groups but a number's last: cells skipped since the run before (they are nothing of the
-- allocator's), cells of the run * 2 + (1 if each equals the same cell of the row before) and, unless they do, of each of them: bytes that are
-- resident and live, resident and free, resident and the top; held and never resident; not resident any more, held or not.
CREATE TABLE heap_map (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  time_ns INTEGER NOT NULL,                     -- moment of the row
  cell_bytes INTEGER NOT NULL,                  -- length of a cell
  cells BLOB NOT NULL,                          -- see above
  PRIMARY KEY (process, time_ns)
) WITHOUT ROWID;

-- Allocations by requested size, in powers of two. sum(blocks) over a process equals that of `site`.calls.
CREATE TABLE size_class (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  bytes_min INTEGER NOT NULL,                   -- smallest request of the row
  bytes_max INTEGER NOT NULL,                   -- largest
  blocks INTEGER NOT NULL,                      -- allocated
  bytes INTEGER NOT NULL,                       -- requested by them
  usable_bytes INTEGER NOT NULL,                -- what they could hold
  live_blocks_end INTEGER NOT NULL,             -- of them: not freed
  live_bytes_end INTEGER NOT NULL               -- requested bytes of those
);

-- Blocks by how long they lived, in powers of two. Those never freed have a row with NULL.
CREATE TABLE lifetime (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  ns_min INTEGER,                               -- shortest life of the row; NULL: live at the end
  ns_max INTEGER,                               -- longest
  blocks INTEGER NOT NULL,                      -- how many
  bytes INTEGER NOT NULL                        -- requested by them
);

-- Who allocates and who frees.
CREATE TABLE thread_use (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  thread INTEGER NOT NULL REFERENCES thread,    -- row of thread
  blocks INTEGER NOT NULL,                      -- allocated by it
  bytes INTEGER NOT NULL,                       -- requested by them
  freed INTEGER NOT NULL,                       -- blocks it freed, whoever had allocated them
  freed_bytes INTEGER NOT NULL,                 -- requested bytes of those
  freed_foreign INTEGER NOT NULL,               -- of `freed`: blocks of other threads
  freed_by_others INTEGER NOT NULL              -- its own blocks that other threads freed
);

-- Who allocates and who frees, arena by arena. Sums over a process are those of thread_use.
CREATE TABLE arena_use (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  arena INTEGER NOT NULL,                       -- 1: the main one; 2, 3, ...: as in `ledger`; 0: blocks with a mapping of their own
  thread INTEGER NOT NULL REFERENCES thread,    -- row of thread
  blocks INTEGER NOT NULL,                      -- allocated there by it
  bytes INTEGER NOT NULL,                       -- requested by them
  freed INTEGER NOT NULL,                       -- blocks of the arena it freed, whoever had allocated them
  freed_bytes INTEGER NOT NULL,                 -- requested bytes of those
  freed_foreign INTEGER NOT NULL                -- of `freed`: blocks of other threads
);

-- Blocks of arenas other than the main one that another thread than their own freed, by stack. The stacks with most; one row with stack NULL sums
-- up the rest.
CREATE TABLE foreign_free (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  stack INTEGER,                                -- that allocated; NULL: all others
  stacks INTEGER NOT NULL,                      -- how many the row is for
  blocks INTEGER NOT NULL,                      -- freed by others
  bytes INTEGER NOT NULL                        -- requested bytes of those
);

-- Page faults by the stack that allocated the block and the code that touched it.
CREATE TABLE fault_site (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  stack INTEGER NOT NULL,                       -- 0: in no block
  touched_by INTEGER,                           -- frame of the touching instruction
  region TEXT NOT NULL,                         -- heap (brk) | arena | block (a mapping of its own) | other
  faults INTEGER NOT NULL,                      -- page faults
  repeat_faults INTEGER NOT NULL,               -- of them on pages that had been there before
  bytes INTEGER NOT NULL,                       -- brought in by them
  ns_estimate INTEGER NOT NULL,                 -- time in them, by the measured cost of a fault
  kernel INTEGER NOT NULL,                      -- 1: touched in kernel mode, as by read() into fresh memory
  cow_faults INTEGER NOT NULL,                  -- of faults: writes to what a fork shares
  zero_upgrades INTEGER NOT NULL,               -- of faults: writes after a read had got the zero page
  after_munmap INTEGER NOT NULL,                -- of repeat_faults: the page was last released by munmap
  after_trim INTEGER NOT NULL,                  -- likewise: by trimming a heap's top
  after_malloc_trim INTEGER NOT NULL,           -- likewise: by malloc_trim, inside the heap
  after_madvise INTEGER NOT NULL                -- likewise: by the program's madvise
);

-- Memory system calls by stack, and over all stacks (stack NULL), with their distribution.
CREATE TABLE syscall_cost (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  stack INTEGER,                                -- NULL: all stacks together
  name TEXT NOT NULL,                           -- as in syscall
  origin TEXT NOT NULL,                         -- as in syscall; the recorder's own are left out
  cause TEXT NOT NULL,                          -- as in syscall; empty for the program's own
  count INTEGER NOT NULL,                       -- calls
  ns INTEGER NOT NULL,                          -- time in them
  p50_ns INTEGER NOT NULL,                      -- the median's duration
  p99_ns INTEGER NOT NULL,                      -- 99 of 100 are no longer
  max_ns INTEGER NOT NULL                       -- longest
);

-- The books at each snapshot: is what the replay says of the heap what the kernel says? The program runs on while a snapshot is
-- taken, so the replay's figure is a range. rss_bytes = other_bytes + heap_bytes + what moved within the range + residual_bytes.
CREATE TABLE balance (
  snapshot INTEGER PRIMARY KEY REFERENCES snapshot,  -- row of snapshot
  process INTEGER NOT NULL REFERENCES process,       -- row of process
  rss_bytes INTEGER NOT NULL,                        -- by smaps
  other_bytes INTEGER NOT NULL,                      -- of it: outside the allocator's memory
  kernel_heap_bytes INTEGER NOT NULL,                -- of it: the allocator's memory
  heap_bytes INTEGER NOT NULL,                       -- the allocator's resident memory by the replay, at the snapshot's end
  heap_bytes_min INTEGER NOT NULL,                   -- least while the snapshot was taken
  heap_bytes_max INTEGER NOT NULL,                   -- most
  residual_bytes INTEGER NOT NULL,                   -- how far kernel_heap_bytes lies outside of min..max; 0: the books balance
  unfaulted_bytes INTEGER NOT NULL,                  -- of heap_bytes: shown by pagemap, brought by no fault (mlock, huge pages, ...)
  touched_absent_bytes INTEGER NOT NULL,             -- not in heap_bytes: touched, but no memory (the zero page, reclaimed, swapped)
  swap_bytes INTEGER NOT NULL,                       -- by smaps, of the mappings with the allocator's memory
  huge_bytes INTEGER NOT NULL,                       -- likewise: in transparent huge pages
  shared_bytes INTEGER NOT NULL                      -- likewise: shared with another process, as after a fork
);

-- RSS line by line at the snapshots that reports default to. The lines of a moment, what moved and the residual (table balance) add up to rss_bytes.
CREATE TABLE ledger (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak (the snapshot with most RSS) | exit (the last snapshot)
  snapshot INTEGER NOT NULL,                    -- row of snapshot
  region TEXT NOT NULL,                         -- main heap | arena N | mapped blocks | program | files | stacks | heapledger | kernel
  name TEXT NOT NULL,                           -- what the bytes are
  bytes INTEGER NOT NULL,                       -- resident
  source TEXT NOT NULL                          -- replay | smaps
);

-- The allocator's regions at the same moments.
CREATE TABLE ledger_region (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak | exit
  region TEXT NOT NULL,                         -- as in ledger
  held_bytes INTEGER NOT NULL,                  -- held from the system
  resident_bytes INTEGER NOT NULL,              -- by the replay, at the snapshot's end
  kernel_bytes INTEGER                          -- by pagemap; NULL where that could not be read
);

-- The heap's fullest moments as replayed, and what glibc's layout would have held at the ledger's.
CREATE TABLE ledger_moment (
  process INTEGER NOT NULL REFERENCES process,  -- row of process
  at TEXT NOT NULL,                             -- peak | exit | model peak (of RSS, between snapshots too)
  at_ns INTEGER NOT NULL,                       -- when
  rss_bytes INTEGER NOT NULL,                   -- smaps; of the model peak: between snapshots by faults and releases
  held_bytes INTEGER,                           -- by the allocator, from the system
  glibc_held_bytes INTEGER                      -- the model of glibc's layout over the same calls; NULL: not known
);

-- What glibc's own 8-byte headers would have made of the same calls: a model of its allocator, run over them. Of a forked child
-- its own part; the peak begins with what it inherited.
CREATE TABLE fidelity (
  process INTEGER PRIMARY KEY REFERENCES process,  -- row of process
  held_bytes_peak INTEGER NOT NULL,                -- most bytes held from the system at once
  brk INTEGER NOT NULL,                            -- system calls the allocator would have made
  mmap INTEGER NOT NULL,                           -- likewise
  munmap INTEGER NOT NULL,                         -- likewise
  mremap INTEGER NOT NULL,                         -- likewise
  madvise INTEGER NOT NULL,                        -- likewise
  mprotect INTEGER NOT NULL                        -- likewise
);

CREATE INDEX event_batch_by_process ON event_batch(process, time_min_ns);
CREATE INDEX fault_batch_by_process ON fault_batch(process, time_min_ns);

-- Names of frames. Depth 0 is the function whose machine code it is; inlined ones have higher depths, the innermost the highest. NULL: unknown.
CREATE VIEW symbol(frame, inline_depth, function, file, line) AS
SELECT place.frame, place.inline_depth, function.name, file.name, place.line
FROM symbol_place AS place
LEFT JOIN symbol_name AS function ON function.id = place.function
LEFT JOIN symbol_name AS file ON file.id = place.file;

-- A stack as text, innermost first, one frame a line: function (file:line), inlined ones too.
CREATE VIEW stack_text(id, text) AS
SELECT s.id, (
  WITH RECURSIVE walk(node, depth) AS (
    SELECT s.id, 0
    UNION ALL
    SELECT stack.parent, depth + 1 FROM walk JOIN stack ON stack.id = walk.node WHERE stack.parent != 0
  )
  SELECT group_concat(line, char(10)) FROM (
    SELECT coalesce(function.name,
                    CASE WHEN stack.frame = 1 THEN '[incomplete]' ELSE printf('0x%x', frame.offset) END)
           || coalesce(' (' || file.name || ':' || place.line || ')', coalesce(' in ' || module.path, '')) AS line
    FROM walk
    JOIN stack ON stack.id = walk.node
    JOIN frame ON frame.id = stack.frame
    LEFT JOIN module ON module.id = frame.module
    LEFT JOIN symbol_place AS place ON place.frame = stack.frame
    LEFT JOIN symbol_name AS function ON function.id = place.function
    LEFT JOIN symbol_name AS file ON file.id = place.file
    ORDER BY walk.depth, place.inline_depth DESC
  )
) FROM stack AS s;
