"""Every limit of time, size and number in one place; it imports nothing of the service, so that any check can read it.

What a goal may be (the length of its name, goals on a page) is no limit of a machine but a rule of the API: `schemas`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service waits for and accepts: seconds, bytes and numbers.

    One object is made at the start and passed to everything that needs it. A test, or a drill, that needs other limits
    makes another with `dataclasses.replace`. docs/operations.md has the times that an operator may see, each with its
    reason.
    """

    # A request.
    target_size: int = 2048
    """Bytes of the path and the query string."""
    headers_size: int = 16 * 1024
    headers_number: int = 100
    body_size: int = 16 * 1024
    body_deadline: float = 2.0
    """For the body to arrive, whatever trickles in."""
    request_deadline: float = 3.3
    """Of a read: more than `retry_budget`."""
    write_deadline: float = 17.5
    """Of a write, once its body is there: more than `write_wait`."""
    gateway_patience: float = 20.0
    """How long a gateway waits for an answer: longer than any request takes, so that the service says what is wrong."""

    # A client's connection, and the stop.
    backlog: int = 4096
    """Connections of each port that wait to be accepted, as many as the kernel allows by default (somaxconn); the next
    one is dropped, and its client tries again a second later."""
    keep_alive: float = 5.0
    """Without a request: longer than a gateway keeps an idle connection (4 s), shorter than the drain (6 s)."""
    keep_alive_requests: int = 1_000_000_000
    """On one connection. Only the benchmark's unmodified Hypercorn counts, and would end it after a thousand."""
    stop_margin: float = 1.0
    """For the server's own stop, beyond what the requests under way may take."""
    transport_grace: float = 0.5
    """Beyond both deadlines, until the connection is cut: a request that is late is still answered by a 503."""
    linger: float = 1.0
    """For a client to read its last answer and hang up; what it sends meanwhile is dropped (RFC 9112, 9.6)."""
    head_size: int = 20 * 1024
    """More than is accepted above, where the answer says what is wrong; h11 answers a longer head by a bare 431."""
    read_ahead: int = 8 * 1024
    """Of pipelined requests, in h11; asyncio's reader, whose own default is 64 kB, and its transport (256 kB) hold
    twice as much each."""
    answer_piece: int = 16 * 1024
    """Of an answer, copied to wait for the client; the rest stays where the application has it."""
    kernel_buffer: int = 32 * 1024
    """In each direction; the kernel doubles it, and would take megabytes of the pod's memory otherwise."""
    accepts_per_turn: int = 16
    """Connections of a port in one turn of the event loop, so that requests under way do not wait for a flood."""
    refusals_per_turn: int = 256
    """Connections closed in one turn while the port is full: closing is cheap, and nobody waits long for it."""
    operators_connections: int = 64
    """To the ops port, whatever the public one holds."""
    spare_descriptors: int = 64
    """For PostgreSQL and files; what these two leave is the public port's."""
    connection_memory: int = 113_000
    """Of a client that does not read: 49 kB of ours and 64 kB of the kernel's; an idle connection takes 8 kB."""
    log_interval: float = 10.0
    """Between two log lines about clients that do the same; each is counted."""
    traces_flush: float = 2.0
    """For the last spans at the stop; a dead collector would delay it for longer."""

    # Who may use the database.
    gate_queue: int = 128
    """Reads, and writes, that may wait for a connection; the next one is refused at once."""
    write_queue: int = 512
    """Writes that may wait for the primary in a failover. None is bigger than `body_size`: 8 MiB at most."""
    kept_for_reads: int = 2
    """Connections that writes leave free: a commit may wait for a standby, and reads go on."""
    gate_timeout: float = 0.5
    """For a connection to become free while the database answers."""
    unresponsive_after: float = 0.25
    """Without an answer for so long, while statements are under way, the database counts as away."""
    acceptable_wait: float = 0.25
    """No sign of overload up to here; after `gate_timeout` without a shorter wait the queue is only a delay."""

    # Adds that share a commit.
    groups: int = 1
    """Statements under way at once: with 2, 4 and 10, an add costs 5, 16 and 56 % more CPU time (`make groups`)."""
    group_turn: float = 0.005
    """After this, the next one may begin even if the last one is not committed yet."""
    group_adds: int = 64
    group_bytes: int = 64 * 1024
    """Of the values in one statement."""
    group_stall: float = 0.1
    """For a key that another transaction holds: PostgreSQL's lock_timeout, for the group's statement only."""
    group_time: float = 0.1
    """A statement is slow if it takes longer than this, and half as long again as one with a single add."""

    # A statement and its attempts.
    connect_timeout: float = 1.0
    statement_timeout: float = 1.0
    """PostgreSQL's own; 0 is none."""
    command_timeout: float = 1.2
    """The driver's: a server that froze cannot end its own statements."""
    retry_budget: float = 3.0
    """For all attempts of a read, the wait for a connection included; for those of a write too, once it drains."""
    write_wait: float = 15.0
    """The same for a write, which waits for the primary: with the manifests' settings CloudNativePG took 13.1 s at most
    until writes went on. `GOALS_WRITE_WAIT_SECONDS` may shorten it."""
    failover_time: float = 14.0
    """After so long writes are mostly possible again: what `Retry-After` promises to one that is refused."""
    ping_pause: float = 0.1
    """Between two looks whether the primary is back; one that hangs ends after `connect_timeout`."""
    first_pause: float = 0.02
    """Between two attempts, at most; each further pause may be twice as long."""
    longest_pause: float = 0.5
    rejected_backoff: float = 0.25
    """How long no other connection is opened after the server has refused one."""
    recovered_after: float = 1.0
    """An outage is over when no statement has failed for so long: in some, only part of the connections is lost."""

    # Reads while the primary is down.
    silence: float = 0.3
    """Without an answer to a read for so long, and to any other statement meanwhile, all servers are asked."""
    servers: int = 8
    """Addresses behind `DB_STANDBY_HOST`, the primary's included; others are left out."""
    server_connections: int = 2
    """To each of these servers, opened in advance."""
    ask_timeout: float = 0.3
    """For the servers' replies to one question."""
    ask_grace: float = 0.05
    """For further replies once there are enough."""
    standby_timeout: float = 0.6
    """For a query on the server that was chosen."""
    replay_timeout: float = 1.0
    """For a standby to replay what it has received."""
    replay_stall: float = 0.5
    """Where replay stands still for so long, the log ends within a record, whose rest will never come: longer than a
    query may hold it up (`max_standby_streaming_delay`)."""
    replay_pause: float = 0.01
    """Between two looks at replay."""
    ask_pause: float = 0.05
    """Until the servers are asked again, where too few replied."""
    watch_interval: float = 1.0
    """Between two questions to all servers while nobody reads: is there a newer timeline?"""
    resolve_interval: float = 5.0
    """Between two look-ups of `DB_STANDBY_HOST`."""

    # Changes of the schema.
    lock_timeout: float = 0.2
    """For the table's lock: as long as it is waited for, every later statement waits behind it. Each revision sets it
    for itself too, so that `alembic upgrade head --sql` carries it."""
    lock_patience: float = 60.0
    """How long a lock that a long transaction holds is asked for again."""
    turn_patience: float = 900.0
    """For another migration, which may be building an index on a large table."""
    # part adoption
    widen_batch: int = 1000
    """Ids copied by one statement, which holds their rows for some 10 ms; the pause after it is as long again."""
    widen_progress: float = 2.0
    """Between two lines that say how far `widen` is."""
    # end adoption

    # Old idempotency keys.
    keys_batch: int = 1000
    """Removed by one statement, which takes some 10 ms."""
    keys_batch_pause: float = 0.1
    """Between two batches, for the requests under way."""
    keys_pause: float = 60.0
    """Between two looks for old keys."""

    # part azure
    # The check of the backups.
    api_timeout: float = 10.0
    """For an answer of the API server."""
    api_patience: float = 60.0
    """For an API server that does not answer, as while it is upgraded."""
    restore_patience: float = 3 * 3600.0
    """For the backups to be restored; the CronJob ends the check an hour later."""
    removal_patience: float = 600.0
    """For the scratch cluster to be gone."""
    restore_connect: float = 60.0
    restore_pause: float = 2.0
    """Between two questions."""
    restore_lag: float = 900.0
    """What is younger need not be in the archive yet: it gets WAL every five minutes at the latest."""
    restore_sample: int = 1000
    """Goals, and keys, that are compared one by one: the newest."""
    # end azure

    # The start.
    first_schema_pause: float = 0.1
    """Until the schema is looked for again; each further pause is twice as long."""
    longest_schema_pause: float = 2.0

    # What is read in the background.
    ids_interval: float = 60.0
    """Between two looks at how many ids are used. Even at 1,500 inserts a second an int4 lasts 16 days."""
