//! The seams: what Wayfix asks of a log, a store, a ledger and a registry, and the parts that stand behind them.
