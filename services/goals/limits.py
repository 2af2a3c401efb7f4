"""All limits on time, size and number; this module imports nothing from the service, so that any check can read it.

Rules of the API, such as the length of a name or the number of goals on a page, are in `schemas`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the service waits and how much it accepts: times in seconds, sizes in bytes.

    One object is created at start and passed to everything that needs it. A test, or a drill, that needs other limits
    makes a copy with `dataclasses.replace`. docs/operations.md lists the times that an operator may notice, with their
    reasons.
    """

    # A request.
    target_size: int = 2048
    """Maximum length of the path and the query string."""
    headers_size: int = 16 * 1024
    headers_number: int = 100
    body_size: int = 16 * 1024
    body_deadline: float = 2.0
    """Time for the complete body to arrive, however slowly."""
    request_deadline: float = 3.3
    """Time for a read request: more than `retry_budget`."""
    write_deadline: float = 17.5
    """Time for a write request after its body has arrived: more than `write_wait`."""
    gateway_patience: float = 20.0
    """A gateway's wait for a response: longer than any request takes, so that clients get the service's own error."""

    # A client's connection, and the stop.
    backlog: int = 4096
    """Connections of each port that wait to be accepted, as many as the kernel allows by default (somaxconn). Further
    ones are dropped, and their clients retry a second later."""
    keep_alive: float = 5.0
    """Time without a request: longer than a gateway keeps an idle connection (4 s), shorter than the drain (6 s)."""
    keep_alive_requests: int = 1_000_000_000
    """Requests on one connection; Hypercorn's default is 1,000."""
    stop_margin: float = 1.0
    """Time for the server itself to stop, after the time that active requests may take."""
    transport_grace: float = 0.5
    """Time after both deadlines until the connection is aborted: a late request still gets its 503."""
    linger: float = 1.0
    """Time for a client to read its last response and close; what it sends meanwhile is dropped (RFC 9112, 9.6)."""
    head_size: int = 20 * 1024
    """More than the limits above, whose responses give the reason: h11 answers a longer head with a bare 431."""
    read_ahead: int = 8 * 1024
    """Pipelined requests in h11's buffer; asyncio's reader (64 kB by default) and its transport (256 kB) may buffer
    twice as much each."""
    answer_piece: int = 16 * 1024
    """Part of a response that is copied while it waits for the client; the rest stays in the application's buffer."""
    kernel_buffer: int = 32 * 1024
    """Socket buffer for each direction; the kernel doubles it. Its default could use megabytes of the pod's memory."""
    accepts_per_turn: int = 16
    """Connections of a port accepted per turn of the event loop, so that a flood does not delay active requests."""
    refusals_per_turn: int = 256
    """Connections closed per turn while the port is full: closing is cheap, and delays other requests little."""
    operators_connections: int = 64
    """Maximum connections to the ops port, independent of those to the public port."""
    spare_descriptors: int = 64
    """File descriptors for PostgreSQL and files; the public port gets what this and the limit above leave."""
    connection_memory: int = 113_000
    """A client that does not read takes 49 kB in the process and 64 kB in the kernel; an idle connection takes 8 kB."""
    log_interval: float = 10.0
    """Time between log lines about the same behaviour of clients; a metric counts every case."""
    traces_flush: float = 2.0
    """Time to export the last spans at shutdown; an unreachable collector would delay it longer."""

    # Access to the database.
    gate_queue: int = 128
    """Reads, and as many writes, that may wait for a connection; further ones are rejected immediately."""
    write_queue: int = 512
    """Writes that may wait for the primary in a failover. None is bigger than `body_size`: 8 MiB at most."""
    kept_for_reads: int = 2
    """Connections that writes leave free, so that reads continue while commits wait for a standby."""
    gate_timeout: float = 0.5
    """Time for a connection to become free while the database answers."""
    unresponsive_after: float = 0.25
    """Time without an answer, while statements are under way, after which the database counts as down."""
    acceptable_wait: float = 0.25
    """A wait up to this is no sign of overload; after `gate_timeout` without such a wait, the queue only adds delay."""

    # Adds that share a commit.
    groups: int = 1
    """Concurrent statements: with 2, 4 and 10, an add costs 5, 16 and 56 % more CPU time (`make groups`)."""
    group_turn: float = 0.005
    """Time after which the next statement may start even if the last one is not committed yet."""
    group_adds: int = 64
    group_bytes: int = 64 * 1024
    """Total size of the values in one statement."""
    group_stall: float = 0.1
    """Time to wait for a key that another transaction has locked: the lock_timeout of a group's statement only."""
    group_time: float = 0.1
    """A statement is slow if it takes longer than this and more than 1.5 times as long as one with a single add."""

    # A statement and its attempts.
    connect_timeout: float = 1.0
    statement_timeout: float = 1.0
    """PostgreSQL's own timeout; 0 disables it."""
    command_timeout: float = 1.2
    """The driver's timeout: a frozen server cannot end its own statements."""
    retry_budget: float = 3.0
    """Time for all attempts of a read, including the wait for a connection; during the drain, also of a write."""
    write_wait: float = 15.0
    """The same for a write, which waits for the primary: with the manifests' settings, CloudNativePG took at most
    13.1 s until writes continued. `GOALS_WRITE_WAIT_SECONDS` may shorten it."""
    failover_time: float = 14.0
    """Time after which writes usually work again: the basis of `Retry-After` for a rejected write."""
    ping_pause: float = 0.1
    """Time between checks for a primary; a check that hangs ends after `connect_timeout`."""
    first_pause: float = 0.02
    """Maximum pause between two attempts; the maximum doubles each time."""
    longest_pause: float = 0.5
    rejected_backoff: float = 0.25
    """Time without new connections after the server has refused one."""
    recovered_after: float = 1.0
    """Time without a failed statement after which an outage is over: some outages break only some connections."""

    # Reads while the primary is down.
    silence: float = 0.3
    """If neither a read nor any other statement is answered for this time, all servers are queried."""
    servers: int = 8
    """Maximum addresses behind `DB_STANDBY_HOST`, including the primary's; others are ignored."""
    server_connections: int = 2
    """Connections to each of these servers, opened in advance."""
    ask_timeout: float = 0.3
    """Time for the servers' replies to one query of their state."""
    ask_grace: float = 0.05
    """Time for further replies once there are enough."""
    standby_timeout: float = 0.6
    """Time for a query on the chosen server."""
    replay_timeout: float = 1.0
    """Time for a standby to replay the WAL it has received."""
    replay_stall: float = 0.5
    """Time without replay progress after which the last WAL record counts as incomplete: longer than a query may delay
    replay (`max_standby_streaming_delay`)."""
    replay_pause: float = 0.01
    """Time between checks of the replay."""
    ask_pause: float = 0.05
    """Time until the servers are queried again if too few replied."""
    watch_interval: float = 1.0
    """Time between queries of all servers for a newer timeline, independent of reads."""
    resolve_interval: float = 5.0
    """Time between look-ups of `DB_STANDBY_HOST`."""

    # Changes of the schema.
    lock_timeout: float = 0.2
    """Time to wait for the table's lock, during which every later statement waits too. Each revision also sets it, so
    that the output of `alembic upgrade head --sql` contains it."""
    lock_patience: float = 60.0
    """Time to keep requesting a lock that a long transaction holds."""
    turn_patience: float = 900.0
    """Time to wait for another migration, which may be building an index on a large table."""
    # part adoption
    widen_batch: int = 1000
    """Ids copied by one statement, which locks their rows for about 10 ms; the pause after it is as long."""
    widen_progress: float = 2.0
    """Time between log lines about the progress of `widen`."""
    # end adoption

    # Old idempotency keys.
    keys_batch: int = 1000
    """Keys removed by one statement, which takes about 10 ms."""
    keys_batch_pause: float = 0.1
    """Time between batches, so that active requests are served."""
    keys_pause: float = 60.0
    """Time between searches for old keys."""

    # part azure
    # The check of the backups.
    api_timeout: float = 10.0
    """Time for a response from the API server."""
    api_patience: float = 60.0
    """Time to wait for an API server that does not respond, for example during its upgrade."""
    restore_patience: float = 3 * 3600.0
    """Time for the backups to be restored; the CronJob ends the check an hour later."""
    removal_patience: float = 600.0
    """Time for the scratch cluster to be removed."""
    restore_connect: float = 60.0
    restore_pause: float = 2.0
    """Time between requests."""
    restore_lag: float = 900.0
    """Data newer than this may not be in the archive yet, which receives WAL at least every five minutes."""
    restore_sample: int = 1000
    """Number of the newest goals, and of the newest keys, that are compared one by one."""
    # end azure

    # The start.
    first_schema_pause: float = 0.1
    """Time until the schema is checked again; each further pause is twice as long."""
    longest_schema_pause: float = 2.0

    # What is read in the background.
    ids_interval: float = 60.0
    """Time between checks of how many ids are used. Even at 1,500 inserts a second, an int4 lasts 16 days."""
