"""Collects every trade of the markets you name, and proves that none is missing.

The data's path, and where to read on:

    exchange ──ws──▶ feed ──Inbox──▶ writer ──▶ gaps ──▶ segments ──▶ .csv ──seal──▶ .csv.zip
                      │                │         │           ▲
         exchanges/ (pure: names,      │         │ hole      │ rows of history
         addresses, decoding) ◀────────┘         ▼           │
                                     repair (small, in place), backfill (large, in the background) ◀── rest

    .csv.zip ──upload──▶ store (a bucket, a folder)          what happens ──▶ happenings ──▶ journal, log, alerts

    collector   puts all of this together: read it first
    venues      what is collected where;   listings  what each exchange says of its symbols, kept on disk
    starting    which feeds may begin, and which wait for what;   watch  silence and clocks
    events      the messages and the rows they become
    exchanges/  what each exchange says; Binance's three markets are rows of one table
    feed        one connection kept alive, and the bounded queue behind it
    writer      from the queue to the files: every row passes here
    gaps        the rules of numbering: next, copy, gap, restart
    repair      missing IDs fetched from history and proved;   backfill  those that cannot be waited for
    rest        GET inside the exchange's request limit
    segments    the life of a CSV file;   files  names and packing;   recovery, salvage  after a crash
    hours       rows by the hour, counted while sealing;   measured  latency and time connected
    happenings  what happened, told and kept;   journal  its record;   status  what is going on, for people and monitors
    alerts/     from happenings to messages, once, to each channel;   metrics  for Prometheus;   systemd  signs of life
    store       where files are delivered, and how arrival is proved;   upload  one night's run;   backlog  what waits
    sealed      is a sealed file what was sealed;   deliveries  what the journal says of files and stores
    report/     is a day's data whole;   chart  its picture;   check/  everything tried once, before a month alone
    config      file, environment and command line to one object
    cli, demo   the commands;   terminal  what they are seen in
    dataset/    the reading half, which nothing above imports: replay, a market on this machine
"""

__version__ = "0.1.0"
