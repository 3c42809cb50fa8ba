"""What is on disk, and who may write it: the ledger, leases, run folders, records of studies and searches."""
