using System;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>Which calls are retried, and how: the same as in the Python client.</summary>
    internal static class RetryPolicies
    {
        private static readonly string[] IdempotentStoreCalls =
        {
            "GetServerInfo",
            "DeriveTileIdentity",
            "InsertTile",
            "GetTile",
            "LookupTiles",
            "QueryTiles",
            "DescribeBlocks",
            "DescribeCoverage",
            "ListExpiring",
            "TouchTiles",
            "ListPendingUploads",
            "ListTiles",
            "ListFlights",
            "MarkUploaded",
        };

        private static readonly string[] IdempotentAdminCalls =
        {
            "GetStorageUsage",
            "GetMetrics",
            "ListEvictions",
            "ListPins",
            "ListSectors",
            "ListFreshnessRules",
            "ExplainFreshness",
            "UpdateTiles",
        };

        public static ServiceConfig CreateServiceConfig()
        {
            var idempotent = new MethodConfig
            {
                RetryPolicy = new RetryPolicy
                {
                    MaxAttempts = 4,
                    InitialBackoff = TimeSpan.FromSeconds(0.1),
                    MaxBackoff = TimeSpan.FromSeconds(1),
                    BackoffMultiplier = 2,
                    RetryableStatusCodes = { StatusCode.Unavailable },
                },
            };
            foreach (string method in IdempotentStoreCalls)
            {
                idempotent.Names.Add(new MethodName { Service = TileMetadataStore.Descriptor.FullName, Method = method });
            }

            foreach (string method in IdempotentAdminCalls)
            {
                idempotent.Names.Add(new MethodName { Service = TileCacheAdmin.Descriptor.FullName, Method = method });
            }

            return new ServiceConfig { MethodConfigs = { idempotent } };
        }
    }
}
