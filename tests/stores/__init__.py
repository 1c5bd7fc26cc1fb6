"""Stores to upload to: one that judges, one with bad manners, and a proxy that breaks what passes.

`swift` is OpenStack Swift behind its S3 layer, as real processes: it refuses damaged bytes and taken names, so what it
holds proves something. `bad` answers as old or careless stores do, each habit a switch. `proxy` stands before either
and does harm at a chosen step of the protocol, a chosen number of times. All of it listens on loopback only.
"""
