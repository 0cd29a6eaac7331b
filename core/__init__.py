"""The domain: manifest, routing, lifecycle, leases, budgets, receipts. *Pure.*"""
