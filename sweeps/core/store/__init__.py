"""Files on disk and the right to write them: ledger, leases, run folders, records."""
