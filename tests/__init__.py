"""Tests of costeer-edge."""
